"""The published programs' codes, beams, reconstructions, losses, gradients, training steps."""

import functools
from collections.abc import Iterator

import golden
import jax
import numpy as np
import pytest
from optimized import optimized

import qinco_jax as qj
from qinco_jax.quantizers import qinco
from qinco_jax.quantizers.beam import Beam
from qinco_jax.quantizers.transform import from_model_space, to_model_space
from qinco_jax.training import step
from qinco_jax.training.recipe import Recipe


@pytest.fixture(autouse=True, scope="module")
def as_users_compile() -> Iterator[None]:
    with optimized():
        yield


every_file = pytest.mark.parametrize("name", golden.NAMES)
load = functools.cache(golden.load)

constant = functools.partial(Recipe, num_epochs=1, schedule="plateau", warmup=0.0, num_updates=1)
UNCLIPPED = 1e9
FIRST_RECIPE = constant(learning_rate=1e-3, weight_decay=0.0, clip=UNCLIPPED)
FIRST_INSIDE_SECOND = constant(learning_rate=1e-4, weight_decay=0.0, clip=UNCLIPPED)
SECOND_RECIPE = constant(learning_rate=8e-4, weight_decay=0.1, clip=0.1)


def assert_close(actual: jax.Array, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Each difference is at most `tolerance` times the largest of the expected magnitudes."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def recipe_of(file: golden.Golden) -> Recipe:
    if not file.second:
        return FIRST_RECIPE
    return FIRST_INSIDE_SECOND if file.sizes["qinco1_mode"] else SECOND_RECIPE


@jax.jit
def beams(model: qj.Qinco, x: jax.Array) -> Beam:
    search = qinco.Search(model.config.num_candidates, model.config.beam_size, joint=False)
    return model.prepare().beams(x, search)


@every_file
def test_codes_are_equal(name: str) -> None:
    file = load(name)
    np.testing.assert_array_equal(qj.encode(file.model, file.arrays["x"]), file.codes)


@pytest.mark.parametrize("name", ["v2_A4_B8_de24_M4_K16_D16", "v2_ivf32_A4_B8_de24_M4_K16_D16"])
def test_every_beam_is_equal(name: str) -> None:
    file = load(name)
    model, x = file.model, file.arrays["x"]
    clear = file.arrays["beam_boundary_margin_per_row"] > 1e-3
    assert clear.mean() > 0.5
    for m in range(1, model.num_steps):  # after the last step the published beam has one entry
        column = m - 1 + model.ivf
        found = beams(qj.prefix(model, m), x)
        codes, x_hat = file.arrays[f"beam_codes/{column}"], file.arrays[f"beam_xhat/{column}"]
        np.testing.assert_array_equal(found.codes[clear], codes[clear])
        few = clear[: len(x_hat)]
        assert_close(found.x_hat[: len(x_hat)][few], x_hat[few])


@every_file
def test_every_prefix_decodes_to_the_published_reconstruction(name: str) -> None:
    file = load(name)
    model = file.model
    x_hat = jax.jit(qinco.reconstructions)(model, file.codes)
    assert_close(x_hat, file.reconstructions)
    assert_close(from_model_space(x_hat, model.transform), file.raw_reconstructions)
    for m in (1, file.codes.shape[1]):
        assert_close(qj.decode(model, file.codes[:, :m]), file.raw_reconstructions[m - 1])


@every_file
def test_losses_and_all_gradients_are_equal(name: str) -> None:
    file = load(name)
    model = file.model
    x = to_model_space(file.arrays["x"], model.transform)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(parameters: object) -> tuple[jax.Array, jax.Array]:
        return step.loss(qinco.with_parameters(model, parameters), x, file.codes)

    (total, x_hat), gradient = loss(qinco.parameters(model))
    assert_close(total, file.arrays["train_total_loss"] - file.coarse_loss)
    steps = slice(-model.num_steps, None)
    assert_close(np.mean((x_hat - x[None]) ** 2, axis=(1, 2))[steps], file.step_losses[steps])
    assert_close(total, (file.step_losses + file.preselection_losses)[steps].sum())
    jax.tree.map(assert_close, gradient, file.parameters("grad/"))


@every_file
def test_five_steps_of_training_are_equal(name: str) -> None:
    file = load(name)
    recipe, losses = recipe_of(file), []
    state = step.init_state(file.model, recipe)
    for _ in range(5):
        state, loss = step.train_step(state, file.arrays["x"], recipe, total_steps=5)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, file.arrays["after5_losses"] - file.coarse_loss, rtol=1e-5)

    def compare(after: jax.Array, before: jax.Array, expected: jax.Array) -> None:
        # Adam blows up the rounding of gradients near zero: a few entries may stray a little.
        movement = expected - before
        difference = after - expected
        assert np.std(difference) <= 1e-3 * np.std(movement)
        assert np.abs(difference).max() <= 1e-2 * np.abs(movement).max()

    after, before = qinco.parameters(state.model), file.parameters("weight/")
    jax.tree.map(compare, after, before, file.parameters("after5/"))


@pytest.mark.parametrize("name", golden.PARTS)
def test_sub_quantizers_give_the_published_codes_and_reconstructions(name: str) -> None:
    file = load(name)
    model = golden.product(file)
    np.testing.assert_array_equal(qj.encode(model, file.arrays["x"]), file.arrays["codes"])
    x_hat = qj.decode(model, file.arrays["codes"])
    assert_close(x_hat, file.arrays["xhat_encode_unscaled"])
    assert_close(x_hat, file.arrays["xhat_decode"])
