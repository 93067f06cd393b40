"""`qinco settings`: what may be changed, and with which effect."""

import dataclasses
import re

from small_run import qinco

import qinco_jax as qj


def test_settings_are_listed_with_their_meaning() -> None:
    text = qinco("settings").output
    for kind in (qj.QincoConfig, qj.Recipe):
        for field in dataclasses.fields(kind):
            assert re.search(rf"^  {field.name} +\S", text, re.MULTILINE), field.name
    decay = "decoupled; 0 makes AdamW plain Adam. `None` is 0.5 with `mix`, else 0.1. [None]"
    assert re.search(rf"weight_decay +{re.escape(decay)}", text)


def test_settings_are_shown_with_a_presets_values() -> None:
    plain, paper = qinco("settings").output, qinco("settings", "qinco1").output
    assert "[qinco2]" in plain and "[1000]" not in plain
    assert "[qinco]" in paper and "[1000]" in paper
    assert "did you mean 'small'" in qinco("settings", "smal").output
