"""Bytes and FLOPs of a step of encoding, by the compiler's count.

    python experiments/traffic.py --out experiments/results/traffic.jsonl
    python experiments/traffic.py --device v5e --device h100 --out FILE

A step is pre-selection, the network and the choice of the beam, for a block of rows; all that it
reads and writes is divided by the R A B candidates. Each compiled operation counts its operands and
results once, wherever they lie: tables that stay in a cache count as often as they are gathered.

v5e and h100 need no such device, only its compiler: `libtpu` (pip install 'jax[tpu]'), and
'jax[cuda12]' with JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1. Without a card products are not tuned to it.
CPUs without units for bfloat16 widen it, so that its bytes say little there.
"""

import os

import click
import jax
import jax.numpy as jnp
import workload
from jax._src.lib import _jax
from jax.experimental import topologies

from qinco_jax.evaluate import machine, results
from qinco_jax.quantizers import beam, qinco
from qinco_jax.quantizers.batching import traced_for

SEARCHES = (16, 32, False), (2, 64, True)
ROWS = {"cpu": 4, "v5e": 512, "h100": 512}  # of a block, about as many as the library takes
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 1 } device_description_str: "H100"
"""


def device(name):
    """The device that is here, or one that only its compiler knows."""
    if name == "v5e":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        return topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    if name == "h100":
        kind = {"target_config": H100, "topology": "1x1x1"}
        return topologies.get_topology_desc(name, "cuda", **kind).devices[0]
    return jax.devices()[0]


def compiled(config, search, dtype, num_rows, on):
    """One step of encoding `num_rows` rows, compiled for the device `on`."""
    prepared = jax.eval_shape(lambda: workload.random_model(config).prepare(dtype))
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        (prepared.model.steps, prepared.tables),
    )
    entries = num_rows, search.beam_size
    beams = beam.Beam(
        jax.ShapeDtypeStruct((*entries, config.num_steps), jnp.int32),
        jax.ShapeDtypeStruct((*entries, config.dim), jnp.float32),
        jax.ShapeDtypeStruct(entries, jnp.float32),
    )

    def step(inputs, x, beams):
        def one(x, entries):
            proposed = qinco._propose(config.form, search, inputs, x, entries)
            return beam.expand(entries, proposed, 1, search.beam_size)

        return jax.vmap(one)(x, beams)

    place = jax.sharding.SingleDeviceSharding(on)
    x = jax.ShapeDtypeStruct((num_rows, config.dim), jnp.float32)
    with traced_for("cpu" if on.platform == "cpu" else "accelerator"):
        traced = jax.jit(step, in_shardings=place, out_shardings=place).trace(inputs, x, beams)
    platform = {"gpu": "cuda"}.get(on.platform, on.platform)
    return traced.lower(lowering_platforms=(platform,)).compile()


def counts(program):
    """The compiler's count; that for GPUs has none without a card, so XLA counts for it."""
    if found := program.cost_analysis():
        return found
    module = program.runtime_executable().hlo_modules()[0]
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--preset", default="qinco2-S", show_default=True, type=click.Choice(workload.MODELS))
@click.option("--device", "devices", multiple=True, default=["here"], show_default=True,
              type=click.Choice(["here", "v5e", "h100"]))  # fmt: skip
@click.option("--out", required=True, type=click.Path())
def main(preset, devices, out):
    rows, config = [], workload.sized(preset)
    for name in devices:
        on = device(name)
        num_rows = ROWS["cpu"] if on.platform == "cpu" else ROWS.get(name, 512)
        for num_candidates, beam_size, joint in SEARCHES:
            for dtype in ("float32", "bfloat16"):
                search = qinco.Search(num_candidates, beam_size, joint)
                found = counts(compiled(config, search, dtype, num_rows, on))
                candidates = num_rows * num_candidates * beam_size
                asked = workload.search(num_candidates, beam_size, joint)
                row = {
                    "compiled_for": on.platform if name == "here" else name,
                    **workload.fields(preset, search=asked, dtype=dtype), "num_rows": num_rows,
                    "bytes": found["bytes accessed"] / candidates,
                    "flops": found["flops"] / candidates,
                }  # fmt: skip
                rows.append({**row, **machine.facts()})
                click.echo(
                    f"{row['compiled_for']:>5} {preset} A={num_candidates} B={beam_size} "
                    f"{'joint' if joint else '     '} {dtype:>8}: a candidate takes "
                    f"{row['bytes']:7,.0f} bytes, {row['flops']:7,.0f} FLOPs"
                )
    results.write(rows, out)


if __name__ == "__main__":
    main()
