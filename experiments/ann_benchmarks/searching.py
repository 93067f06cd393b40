"""What the adapters of both benchmarks share: a model and an index, and search at one setting.

Parameters, from `config.yml` or `big_ann.yaml`: `preset` and `bytes` of a model to train, with any
field of its config or recipe beside them, or the path of a trained `model`; `lists`, if not as many
as `qinco_jax.search.build` chooses; and `count`, the neighbours that will be asked for.
"""

import json

import numpy as np

import qinco_jax as qj
from qinco_jax.codecs.named import sized
from qinco_jax.config import named
from qinco_jax.search.searcher import QUERY_SIZES

METRICS = {"euclidean": "l2", "angular": "cosine", "ip": "ip"}


class Searching:
    """An index under the names that both benchmarks use."""

    def __init__(self, metric, params):
        settings = dict(params)
        self.metric, self.count = named(METRICS, metric, "metric"), settings.pop("count")
        self.name = "-".join(["QincoJax", *(f"{name}={value}" for name, value in settings.items())])
        self.lists, self.path = settings.pop("lists", None), settings.pop("model", None)
        if self.path is None:
            preset, num_bytes = settings.pop("preset"), settings.pop("bytes")
            settings.setdefault("unit_norm", self.metric == "cosine")
            texts = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
            self.sizes = sized(preset, num_bytes, texts)
        self.query_arguments = {}

    def build(self, x_train):
        """Trains the model, or loads it, and fits an index without vectors."""
        model = qj.train(x_train, *self.sizes) if self.path is None else qj.load(self.path)
        self.index = qj.search.build(model, x_train, self.lists, self.metric)

    def set_query_arguments(self, num_probes, num_reranked):
        """Chooses a setting and compiles what any number of queries takes, so that none waits."""
        self.query_arguments = {"num_probes": num_probes, "num_reranked": num_reranked}
        for size in QUERY_SIZES:
            queries = np.resize(self.index.list_vectors, (size, self.index.model.dim))
            self.search(queries, self.count)

    def search(self, queries, k):
        """Ids [Q, k] of the nearest vectors, -1 where fewer are found."""
        return self.index.search(queries, k, **self.query_arguments)[1]

    def get_additional(self):
        """What the benchmarks keep beside each result."""
        return {"code_bytes": self.index.code_bytes}

    def __str__(self):
        return "-".join([self.name, *(f"{name}={n}" for name, n in self.query_arguments.items())])
