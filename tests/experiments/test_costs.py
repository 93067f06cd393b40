"""Scripts about time, bytes and machines go their whole way at a tiny size."""

import dataclasses
import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
from scripts import FEW, TINY, read, run, script, small_workload

import qinco_jax as qj


def test_times_are_those_of_our_models_and_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    settings = [part for setting in TINY for part in ("--set", setting)]
    given = ["--dataset", folder, "--out", folder / "out", "--codecs", "pq,small", *settings]
    assert "small" in run(script("times", monkeypatch), *given)
    rows = read(folder / "out" / "times.jsonl")
    assert [row["codec"] for row in rows] == ["pq", "small"]
    assert all(row["encode_us"] > 0 and row["decode_us"] > 0 for row in rows)


def test_costs_are_measured_once_for_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    module = script("costs", monkeypatch)
    small = module.BASE["small"]._replace(N=600, K=8, D=8, M=2)
    monkeypatch.setattr(module, "BASE", {"small": small})
    monkeypatch.setattr(module, "RANGES", {"small": {"M": (2, 4), "K": (4, 8)}})
    given = ["--out", tmp_path, "--codecs", "opq,rq", "--axes"]
    run(module, *given, "K")
    before = read(tmp_path / "growth.jsonl")
    run(module, *given, "KM")
    rows = read(tmp_path / "growth.jsonl")
    places = [(row["codec"], row["axis"], row["value"]) for row in rows]
    assert len(set(places)) == len(places) == 8 and all(row in rows for row in before)
    for name in ("opq", "rq"):
        own = [row["mse"] for row in rows if row["codec"] == name and row["axis"] == "K"]
        assert own == sorted(own, reverse=True)
    assert (tmp_path / "growth.svg").exists()


def test_calls_of_few_rows_are_timed_beside_jitted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small_workload("calls", monkeypatch)
    monkeypatch.setattr(module, "NUM_ROWS", (1, 10))
    shown = run(module, "--seconds", 0, "--out", tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    told = [(row["task"], row["num_rows"]) for row in rows]
    assert told == [(task, n) for task in ("encode", "decode") for n in (1, 10)]
    assert all(row["ms"] > 0 and row["jitted_ms"] > 0 for row in rows)  # type: ignore[operator]
    assert shown.count("under jit") == 4


def test_bytes_of_a_candidate_are_counted_for_each_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small_workload("traffic", monkeypatch)
    monkeypatch.setattr(module, "SEARCHES", ((4, 2, False), (2, 4, True)))
    shown = run(module, "--out", tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"] * 2
    network = 2 * 2 * 8 * 4  # of a candidate with L = 1: V, and P_out is the identity
    assert all(row["flops"] > network and row["bytes"] > 4 * 8 for row in rows)  # type: ignore[operator]
    assert shown.count("a candidate takes") == 4


def test_a_card_is_measured_in_parts_of_which_none_stops_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("accelerator", monkeypatch)
    tiny = qj.QincoConfig(num_steps=2, embed_dim=4, **FEW)
    for name, value in (
        ("SECONDS", 1e-3), ("PEAK_ROWS", 64), ("NUM_TEST", 50),
        ("STEPPED", ("tiny", "accelerator")),
        ("SEARCHES", (module.workload.search(2, 2),)),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(module.workload.MODELS, "tiny", tiny)
    monkeypatch.setattr(qj, "PRESETS", {"tiny": tiny})
    monkeypatch.setattr(module.workload, "vectors", lambda dim: np.ones((8192, dim), np.float32))
    monkeypatch.setattr(module.recipes, "lasting", lambda recipe, *_: dataclasses.replace(
        recipe, num_epochs=1
    ))  # fmt: skip
    monkeypatch.setenv("BEGAN", "0")
    parts = {"encode": module.encode, "decode": module.decode, "train": module.train}
    first = {"encode": ["tiny"], "decode": ["tiny"], "train": 1}
    monkeypatch.setattr(module, "PARTS", {
        **{name: module.Part(functools.partial(measure, first[name]), 9)
           for name, measure in parts.items()},
        "start": module.Part(module.start, 9), "step": module.Part(module.step, 9),
    })  # fmt: skip
    out = folder / "out.jsonl"
    for name in module.PARTS:
        module.measure(name, out, str(folder))
    rows = read(out)
    assert [row["part"] for row in rows] == ["encode"] * 2 + ["decode"] * 2 + [
        "train", "start", "step"
    ]  # fmt: skip
    assert all(row["share"] > 0 and row["device"] for row in rows[:4])  # type: ignore[operator]
    assert 0 < rows[4]["mse"] < 40 and rows[4]["vectors"] > 0  # type: ignore[operator]
    assert rows[5]["encode"] > 0 and rows[5]["train"] > 0  # type: ignore[operator]
    monkeypatch.setattr(module, "PARTS", {"hangs": module.Part(module.step, 0.2)})
    shown = run(module, "--out", out)
    assert "hangs: 0 s, FAILED: stopped after its 0.2 seconds" in shown
    assert sum(part.limit for part in importlib.reload(module).PARTS.values()) <= 360


def test_work_in_shards_takes_the_ideal_time_and_more_by_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stragglers = script("stragglers", monkeypatch)
    monkeypatch.setattr(stragglers, "SPREADS", {"worker": 0.0, "shard": 0.0})
    ideal = stragglers.ideal(8)
    assert stragglers.simulate(8, 32, 0.0, 0) == (pytest.approx(ideal + 4 * stragglers.START), 0, 0)
    seconds, lost, losses = found = stragglers.simulate(8, 3200, 1.0, 0)
    assert found == stragglers.simulate(8, 3200, 1.0, 0)
    assert losses > 0 and 0 < lost < losses * (ideal / 400 + stragglers.START)
    assert ideal + 400 * stragglers.START < seconds < 1.2 * ideal
