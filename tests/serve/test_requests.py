"""Both forms of a request ask for the same, down to the ids that a search may find."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from qinco_jax.errors import InputError
from qinco_jax.search.index import Index
from qinco_jax.serve import requests
from qinco_jax.serve.requests import BINARY, JSON, Limits

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Asked:
    """An index that gives back what it was asked."""

    model = SimpleNamespace(dim=3)

    def __len__(self) -> int:
        return 100

    def search(self, *given: Any, **options: Any) -> Any:
        return given, options


INDEX = cast(Index, Asked())


@pytest.mark.parametrize("allowed", [[7, 2**62], []])
def test_both_forms_ask_for_the_same(allowed: list[int]) -> None:
    fields = {"k": 4, "num_probes": 2, "num_reranked": 0, "filter": allowed}
    body = json.dumps({"vectors": X.tolist(), **fields}).encode()
    query = {name: str(value).strip("[]") for name, value in fields.items()}
    query["filter"] = query["filter"].replace(" ", "")
    as_json = requests.parse(body, JSON, {}, INDEX, Limits())
    binary = requests.parse(X.tobytes(), BINARY, query, INDEX, Limits())
    assert as_json[1] == binary[1] and hash(as_json[1]) == hash(binary[1])
    np.testing.assert_array_equal(as_json[0], binary[0])
    given, options, missing = cast(Any, as_json[1].search(INDEX, as_json[0]))
    assert given[0] is as_json[0] and given[1:] == (4,)
    np.testing.assert_array_equal(options.pop("filter"), allowed)
    assert options == {"num_probes": 2, "num_reranked": 0} and not missing


@pytest.mark.parametrize("ids", [[-1], [2**63], [10**30], [1.5], [[1], [2, 3]], {"a": 1}, 5])
def test_a_filter_that_is_no_list_of_ids_is_refused(ids: Any) -> None:
    body = json.dumps({"vectors": X.tolist(), "filter": ids}).encode()
    with pytest.raises(InputError, match="filter must be a list of ids"):
        requests.parse(body, JSON, {}, INDEX, Limits())
