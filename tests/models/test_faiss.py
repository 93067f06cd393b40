"""Models in Faiss and back, against Faiss itself: codes, reconstructions, packed codes."""

import dataclasses
import sys
import warnings

import golden
import jax
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.models.faiss import folded
from qinco_jax.quantizers import packing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its generated bindings
    faiss = pytest.importorskip("faiss")

CONFIG = qj.QincoConfig(
    form="qinco", dim=6, num_steps=4, codebook_size=16, hidden_dim=9, num_blocks=2,
    num_candidates=5, beam_size=4,
)  # fmt: skip
PUBLISHED = ("v1_qinco", "v2_qinco1mode")  # low rank among them
KINDS = {
    "centered": {},
    "not centered": {"center": False},
    "rotated": {"rotate": True},
    "no power of two": {"codebook_size": 11, "num_blocks": 1},
    "one step": {"num_steps": 1},
}
MODELS = {
    name: oracle.random_model(dataclasses.replace(CONFIG, **kind)) for name, kind in KINDS.items()
}
MODEL = MODELS["rotated"]
X = oracle.random_vectors(60, 6)
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def encode(codec: object, x: np.ndarray) -> np.ndarray:
    """Faiss's codes [N, M] int32."""
    return codec.encode(faiss.Tensor2D(x)).numpy()


def decode(codec: object, codes: np.ndarray) -> np.ndarray:
    return codec.decode(faiss.Int32Tensor2D(np.int32(codes))).numpy()


def random_codes(codebook_size: int, num_steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, codebook_size, (len(X), num_steps))


def index_of(model: qj.Qinco) -> object:
    sizes = model.config
    bits = sizes.codebook_size.bit_length() - 1
    index = faiss.IndexQINCo(sizes.dim, sizes.num_steps, bits, sizes.num_blocks, sizes.hidden_dim)
    index.qinco, index.is_trained = qj.to_faiss(model), True
    return index


def greedily(model: qj.Qinco, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, M] in float64, and which rows [N] were never near a tie."""
    wide, all_codes, clear = oracle.in_float64(model), [], []
    for row in x:
        z, x_hat, codes, near = oracle.to_model_space(wide, row), 0.0, [], False
        for m in range(model.num_steps):
            ways = [
                wide.codebook[i] if m == 0 else x_hat + oracle.network(wide, m - 1, i, x_hat)
                for i in range(len(wide.codebook))
            ]
            errors = np.square(z - np.array(ways)).sum(axis=1)
            best, second = np.sort(errors)[:2]
            near |= second - best < 1e-4 * (1 + best)
            codes.append(errors.argmin())
            x_hat = ways[codes[-1]]
        all_codes.append(codes)
        clear.append(not near)
    return np.array(all_codes), np.array(clear)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in golden.NAMES if name.startswith(PUBLISHED)])
def test_faiss_agrees_with_the_published_program(name: str) -> None:
    file = golden.load(name)
    codec = qj.to_faiss(file.model)
    np.testing.assert_array_equal(encode(codec, file.arrays["x"]), file.codes)
    assert_close(decode(codec, file.codes), file.raw_reconstructions[-1])


@every_model
def test_faiss_agrees_with_us(model: qj.Qinco) -> None:
    codec = qj.to_faiss(model)
    expected, clear = greedily(model, X)
    assert clear.mean() > 0.9
    greedy = qj.encode(model, X, num_candidates=model.config.codebook_size, beam_size=1)
    for found in (encode(codec, X), np.asarray(greedy)):
        np.testing.assert_array_equal(found[clear], expected[clear])
    codes = random_codes(model.config.codebook_size, model.num_steps)  # such as a beam may find
    assert_close(decode(codec, codes), qj.decode(model, codes))


@every_model
def test_there_and_back(model: qj.Qinco) -> None:
    back, plain = qj.from_faiss(qj.to_faiss(model)), folded(model)
    config = dataclasses.replace(plain.config, num_candidates=None, beam_size=1)
    assert back.config == config
    plain = plain.replace(steps=plain.steps.replace(preselect=None))
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


def test_a_model_made_in_faiss_is_the_same_here() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return np.float32(rng.normal(size=shape) / np.sqrt(shape[-1]))

    index = faiss.IndexQINCo(6, 3, 4, 2, 9)
    index.qinco.codebook0.from_array(normal(16, 6))
    for step in map(index.qinco.get_step, range(2)):
        step.codebook.from_array(normal(16, 6))
        step.MLPconcat.from_array(normal(6, 12), normal(6))
        for block in map(step.get_residual_block, range(2)):
            block.linear1.from_array(normal(9, 6))
            block.linear2.from_array(normal(6, 9))
    model, x = qj.from_faiss(index), normal(60, 6)
    expected, clear = greedily(model, x)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(encode(index.qinco, x)[clear], expected[clear])
    np.testing.assert_array_equal(np.asarray(qj.encode(model, x))[clear], expected[clear])
    assert_close(qj.decode(model, expected), decode(index.qinco, expected))


@pytest.mark.parametrize("codebook_size", [16, 256, 1024])
def test_an_index_reads_our_bytes_and_we_read_its(codebook_size: int) -> None:
    model = oracle.random_model(dataclasses.replace(MODEL.config, codebook_size=codebook_size))
    index = index_of(model)
    codes = random_codes(codebook_size, 4)
    packed, x_hat = packing.pack(codes, codebook_size), qj.decode(model, codes)
    assert_close(index.sa_decode(packed), x_hat)
    index.add_sa_codes(packed)
    assert_close(index.reconstruct(7), x_hat[7])
    _, nearest = index.search(np.asarray(x_hat), 1)
    np.testing.assert_array_equal(nearest[:, 0], np.arange(len(X)))
    theirs = packing.unpack(index.sa_encode(X), 4, codebook_size)
    np.testing.assert_array_equal(theirs, encode(index.qinco, X))


@pytest.mark.parametrize("codebook_size", [16, 256, 1024])
def test_a_residual_quantizer_of_faiss_has_the_same_bytes(codebook_size: int) -> None:
    books = np.float32(np.random.default_rng(0).normal(size=(3, codebook_size, 6)))
    model = qj.rq.RQ(books, np.zeros(6, np.float32), np.float32(1))
    index = faiss.IndexResidualQuantizer(6, 3, codebook_size.bit_length() - 1)
    faiss.copy_array_to_vector(books.ravel(), index.rq.codebooks)
    index.rq.is_trained = index.is_trained = True
    codes = random_codes(codebook_size, 3)
    assert_close(index.sa_decode(packing.pack(codes, codebook_size)), qj.rq.decode(model, codes))
    packed = index.sa_encode(X)
    theirs = packing.unpack(packed, 3, codebook_size)
    assert_close(qj.rq.decode(model, theirs), index.sa_decode(packed))


def test_norms_behind_faisss_codes_are_no_codes() -> None:
    search = faiss.AdditiveQuantizer.ST_norm_float
    index = faiss.IndexResidualQuantizer(6, 3, 4, faiss.METRIC_L2, search)
    books = np.float32(np.random.default_rng(0).normal(size=(3, 16, 6)))
    faiss.copy_array_to_vector(books.ravel(), index.rq.codebooks)
    index.rq.is_trained = index.is_trained = True
    packed = index.sa_encode(X)
    with pytest.raises(qj.InputError, match=r"3 steps with 16 codewords take uint8 \[N, 2\]"):
        packing.unpack(packed, 3, 16)
    codes = faiss.unpack_bitstrings(packed, 3, 4)
    model = qj.rq.RQ(books, np.zeros(6, np.float32), np.float32(1))
    assert_close(qj.rq.decode(model, codes), index.sa_decode(packed))


REFUSED = {
    "not of 'qinco2'": oracle.random_model(dataclasses.replace(CONFIG, form="qinco2")),
    "no coarse codebook": MODEL.replace(config=dataclasses.replace(MODEL.config, num_centroids=16)),
    "export each of model.parts": qj.Product((MODEL, MODEL)),
    "got RQ; pass a Qinco": qj.rq.RQ(np.zeros((1, 16, 6)), np.zeros(6), np.ones(())),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_faiss_lacks_is_refused(message: str) -> None:
    with pytest.raises(qj.InputError, match=f"{message}.* decoded vectors .* additive tables"):
        qj.to_faiss(REFUSED[message])


def test_vectors_divided_by_their_length_are_refused() -> None:
    config = dataclasses.replace(MODEL.config, unit_norm=True)
    with pytest.raises(qj.InputError, match="set unit_norm=False in its config"):
        qj.to_faiss(MODEL.replace(config=config))


def test_what_is_no_qinco_of_faiss_is_refused() -> None:
    with pytest.raises(qj.InputError, match=r"got IndexFlatL2; pass a faiss\.QINCo"):
        qj.from_faiss(faiss.IndexFlatL2(6))


def test_a_network_of_faiss_that_is_no_model_of_ours_is_refused() -> None:
    with pytest.raises(qj.InputError, match="num_blocks must be 1 to 1,024, got 0"):
        qj.from_faiss(faiss.QINCo(6, 16, 0, 3, 9))
    codec = qj.to_faiss(MODEL)
    codec.get_step(1).get_residual_block(0).linear2.from_array(
        np.zeros((6, 9), np.float32), np.ones(6, np.float32)
    )
    with pytest.raises(qj.InputError, match=r"6 weights where its sizes need .* \(0,\)"):
        qj.from_faiss(codec)
    codec = qj.to_faiss(MODEL)
    codec.codebook0 = faiss.Embedding(32, 6)
    with pytest.raises(qj.InputError, match=r"192 weights where its sizes need .* \(16, 6\)"):
        qj.from_faiss(codec)


def test_without_faiss_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(qj.InputError, match=r"pip install 'qinco_jax\[search\]'"):
        qj.to_faiss(MODEL)
    scaled = MODEL.replace(config=dataclasses.replace(MODEL.config, unit_norm=True))
    for refused in (*REFUSED.values(), scaled):  # whom it would not help
        with pytest.raises(qj.InputError) as caught:
            qj.to_faiss(refused)
        assert "pip install" not in str(caught.value)
