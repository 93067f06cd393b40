"""The same models run by others: Faiss, PyTorch without tables, JAX without tables.

Each function takes one of our models, with mean 0 and scale 1, and returns a pair
`encode`, `decode` that maps numpy arrays [N, ...] to numpy arrays. Beams are at most K wide.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def faiss_qinco(model, rows=256):
    """`faiss.QINCo` with the weights of a model of form "qinco": exhaustive and greedy."""
    import faiss

    if model.config.form != "qinco":
        raise ValueError(f"Faiss has form 'qinco' only, got {model.config.form!r}")
    num_blocks, dim, hidden_dim = model.steps.up.shape[1:]
    quantizer = faiss.QINCo(dim, len(model.codebook), num_blocks, model.num_steps, hidden_dim)
    quantizer.codebook0.from_array(_array(model.codebook))
    for m in range(model.num_steps - 1):
        step, ours = quantizer.get_step(m), jax.tree.map(lambda leaf, m=m: leaf[m], model.steps)
        step.codebook.from_array(_array(ours.codebook))
        step.MLPconcat.from_array(_array(ours.concat.T), _array(ours.bias))
        for i in range(num_blocks):
            block = step.get_residual_block(i)
            block.linear1.from_array(_array(ours.up[i].T))
            block.linear2.from_array(_array(ours.down[i].T))

    def encode(x):
        codes = [quantizer.encode(faiss.Tensor2D(part)).numpy() for part in _parts(x, rows)]
        return np.concatenate(codes)

    def decode(codes):
        codes = np.ascontiguousarray(codes, np.int32)
        return quantizer.decode(faiss.Int32Tensor2D(codes)).numpy()

    return encode, decode


def faiss_rq(rq, beam_size, tables=False):
    """`faiss.ResidualQuantizer` with our codebooks; `tables` is its `use_beam_LUT`."""
    import faiss

    num_steps, codebook_size, dim = rq.codebooks.shape
    quantizer = faiss.ResidualQuantizer(dim, num_steps, int(np.log2(codebook_size)))
    faiss.copy_array_to_vector(_array(rq.codebooks).ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    quantizer.max_beam_size = beam_size
    quantizer.use_beam_LUT = int(tables)
    quantizer.compute_codebook_tables()
    return quantizer.compute_codes, quantizer.decode


def network(form, step, codeword, x_hat, concatenate, relu):
    """f(c, x_hat), as the equations have it; for arrays of JAX and of PyTorch."""
    z = codeword if step.proj_in is None else codeword @ step.proj_in
    z = z + concatenate([z, x_hat], -1) @ step.concat + step.bias
    for up, down in zip(step.up, step.down, strict=True):
        z = z + relu(z @ up) @ down
    f = z if step.proj_out is None else z @ step.proj_out
    return codeword + f if form == "qinco2" else f


def distances(x, codebook):
    products = x @ codebook.T
    return (x * x).sum(-1)[..., None] - 2 * products + (codebook * codebook).sum(-1)


def torch_eager(model, block=2**14):
    """PyTorch, eager, on a GPU where there is one; `block` candidates at a time."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(array):
        return torch.tensor(np.asarray(array), device=device)

    first = tensor(model.codebook)
    steps = [
        jax.tree.map(lambda leaf, m=m: tensor(leaf[m]), model.steps)
        for m in range(model.num_steps - 1)
    ]
    f_of = functools.partial(
        network, model.config.form, concatenate=torch.concatenate, relu=torch.nn.functional.relu
    )

    def encode_batch(x, num_candidates, beam_size):
        row = torch.arange(len(x), device=device)[:, None]
        index = distances(x, first).topk(beam_size, largest=False).indices
        codes, x_hat = index[..., None], first[index]
        for step in steps:
            residual = x[:, None] - x_hat
            if num_candidates < len(step.codebook):
                scores = distances(residual, step.preselect)
                index = scores.topk(num_candidates, largest=False).indices
            else:
                index = torch.arange(num_candidates, device=device)
                index = index.expand(len(x), beam_size, num_candidates)
            context = x_hat[:, :, None].expand(-1, -1, num_candidates, -1)
            f = f_of(step, step.codebook[index], context)
            error = (residual[:, :, None] - f).square().sum(-1).flatten(1)
            best = error.topk(beam_size, largest=False).indices
            parent, index = best // num_candidates, index.flatten(1).gather(1, best)
            x_hat = x_hat[row, parent] + f.flatten(1, 2)[row, best]
            codes = torch.concatenate([codes[row, parent], index[..., None]], -1)
        return codes[:, 0]

    def decode_batch(codes):
        x_hat = first[codes[:, 0]]
        for step, index in zip(steps, codes.T[1:], strict=True):
            x_hat = x_hat + f_of(step, step.codebook[index], x_hat)
        return x_hat

    @torch.inference_mode()
    def encode(x, num_candidates, beam_size):
        parts = _parts(x, max(1, block // (num_candidates * beam_size)))
        codes = [encode_batch(tensor(part), num_candidates, beam_size) for part in parts]
        return torch.concatenate(codes).cpu().numpy()

    @torch.inference_mode()
    def decode(codes):
        parts = _parts(np.asarray(codes, np.int64), block)
        return torch.concatenate([decode_batch(tensor(part)) for part in parts]).cpu().numpy()

    return encode, decode


def plain_jax(model, block=2**14):
    """JAX, jitted, for one vector and batched by `jax.lax.map`; `block` candidates at a time."""
    f_of = functools.partial(network, concatenate=jnp.concatenate, relu=jax.nn.relu)

    def steps_of(model):
        return [jax.tree.map(lambda leaf, m=m: leaf[m], model.steps) for m in range(num_rest)]

    def encode_one(model, num_candidates, beam_size, x):
        _, index = lax.top_k(-distances(x, model.codebook), beam_size)
        codes, x_hat = index[:, None], model.codebook[index]
        for step in steps_of(model):
            residual = x - x_hat
            if num_candidates < len(step.codebook):
                _, index = lax.top_k(-distances(residual, step.preselect), num_candidates)
            else:
                index = jnp.broadcast_to(jnp.arange(num_candidates), (beam_size, num_candidates))
            context = jnp.repeat(x_hat[:, None], num_candidates, axis=1)
            f = f_of(model.config.form, step, step.codebook[index], context)
            error = jnp.square(residual[:, None] - f).sum(-1)
            _, best = lax.top_k(-error.reshape(-1), beam_size)
            parent, index = best // num_candidates, index.reshape(-1)[best]
            x_hat = x_hat[parent] + f.reshape(-1, f.shape[-1])[best]
            codes = jnp.concatenate([codes[parent], index[:, None]], -1)
        return codes[0]

    def decode_one(model, codes):
        x_hat = model.codebook[codes[0]]
        for step, index in zip(steps_of(model), codes[1:], strict=True):
            x_hat = x_hat + f_of(model.config.form, step, step.codebook[index], x_hat)
        return x_hat

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def encode_all(model, x, num_candidates, beam_size):
        one = functools.partial(encode_one, model, num_candidates, beam_size)
        return lax.map(one, x, batch_size=max(1, block // (num_candidates * beam_size)))

    @jax.jit
    def decode_all(model, codes):
        return lax.map(functools.partial(decode_one, model), codes, batch_size=block)

    def encode(x, num_candidates, beam_size):
        with jax.default_matmul_precision("highest"):
            return np.asarray(encode_all(model, x, num_candidates, beam_size))

    def decode(codes):
        with jax.default_matmul_precision("highest"):
            return np.asarray(decode_all(model, np.asarray(codes, np.int32)))

    num_rest = model.num_steps - 1
    return encode, decode


def _array(x):
    return np.ascontiguousarray(x, np.float32)


def _parts(x, rows):
    return [x[begin : begin + rows] for begin in range(0, len(x), rows)]
