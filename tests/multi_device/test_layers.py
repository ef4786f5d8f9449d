"""Gradients of networks over 8 forced host devices: what is summed in which precision, and attention split by heads."""

import json
import subprocess
import sys

import pytest

from tests import program

# The gradient of each network on one device and over its mesh, and the collectives of the latter's program.
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from score_sde.distributed import hlo
from score_sde.distributed.collectives import collectives
from score_sde.distributed.mesh import told
from score_sde.distributed.sharding import Layout
from score_sde.models import NETWORKS, Network, precision

AXES = ("slice", "data", "fsdp", "tensor")
P = jax.sharding.PartitionSpec

def gradients(name, settings, sizes, rounded):
    if rounded:  # as a layer that casts its kernel before the product
        precision.product = lambda form, x, kernel, dtype: form.out(x.astype(dtype), kernel.astype(dtype))
    network = Network(NETWORKS[name](**settings), (8, 8, 4))
    mesh = jax.sharding.Mesh(np.reshape(jax.devices(), [sizes.get(axis, 1) for axis in AXES]), AXES)
    drawn = np.random.default_rng(0)
    normal = lambda *shape: drawn.standard_normal(shape).astype(np.float32)
    params = jax.tree.map(lambda leaf: 0.1 * normal(*leaf.shape), jax.eval_shape(network.init, jax.random.key(0)))
    x, tokens = normal(64, 8, 8, 4), normal(64, 5, 16)

    def loss(params, x, tokens):
        condition = {"tokens": tokens} if settings.get("token_features") else None
        noise = jnp.linspace(0.1, 0.9, 64)
        return jnp.mean(network.apply(params, x, noise, condition, train=False, rng=None) ** 2)

    where = Layout.of(mesh, network.parameters()).shardings(params)
    by_batch = jax.sharding.NamedSharding(mesh, P(("data", "fsdp")))
    shardings = {"in_shardings": (where, by_batch, by_batch), "out_shardings": where}
    compiled = jax.jit(told(mesh, jax.grad(loss)), **shardings).lower(params, x, tokens).compile()
    one = jax.jit(jax.grad(loss))(params, x, tokens)
    many = compiled(*jax.device_put((params, x, tokens), shardings["in_shardings"]))
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(one))
    errors = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))) / largest, *jax.device_get((one, many)))
    text = compiled.as_text()
    sent = [(each.kind, each.axes, each.operands) for each in collectives(hlo.parse(text), mesh, 1)]
    # What the CPU's compiler sums in float32 in the place of bfloat16 carries this name.
    narrow = sum("_promoted" in line for line in text.splitlines() if " all-reduce(" in line)
    return {"error": max(jax.tree.leaves(errors)), "sent": sent, "narrow": narrow}

print(json.dumps({name: gradients(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""
UNET = {"channels": 32, "channel_multipliers": [1], "blocks_per_resolution": 1, "attention_resolutions": [8]}
DIT = {"size": "S", "depth": 1, "width": 64, "heads": 4}
CASES = {  # network, settings, mesh, whether gradients are rounded before they are summed
    "dit by heads": ("dit", DIT, {"data": 2, "tensor": 4}, False),
    "edm2 by heads": ("edm2", {**UNET, "channels_per_head": 8, "token_features": 16}, {"data": 2, "tensor": 4}, False),
    "edm2": ("edm2", {**UNET, "channels_per_head": 8, "dtype": "bfloat16"}, {"data": 4, "fsdp": 2}, False),
    "ncsnpp": ("ncsnpp", {**UNET, "dtype": "bfloat16"}, {"data": 2, "fsdp": 4}, False),
    "ncsnpp rounded": ("ncsnpp", {**UNET, "dtype": "bfloat16"}, {"data": 2, "fsdp": 4}, True),  # the last: it stays so
}


@pytest.fixture(scope="module")
def found():
    """By the name of the case, what the script says of it."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)],
        capture_output=True,
        text=True,
        env=program.environment(8),
        cwd=program.ROOT,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "tokens"), [("dit", 4 * 4), ("edm2", 8 * 8)])
def test_attention_is_split_by_heads(found, name, tokens):
    """Over tensor=4 the gradient is one device's, and activations are summed, as they must be, but never moved."""
    result = found[f"{name} by heads"]
    assert result["error"] < 1e-5
    activations = 64 // 2 * tokens * (64 if name == "dit" else 32) // 4 * 4  # bytes of a device's heads
    over_tensor = [each for each in result["sent"] if "tensor" in each[1]]
    assert any(kind == "all-reduce" for kind, _, _ in over_tensor)
    assert all(operands < activations / 2 for kind, _, operands in over_tensor if kind != "all-reduce")


@pytest.mark.parametrize("name", ["edm2", "ncsnpp"])
def test_sums_over_devices_are_in_float32(found, name):
    """Of all gradients of parameters, of a network in bfloat16."""
    assert found[name]["narrow"] == 0
    assert found["ncsnpp rounded"]["narrow"] > 0
