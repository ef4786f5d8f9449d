"""A sample depends on (seed, index) alone: by itself, among 64, and with the 64 on 8 devices. In its own process."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import program
from tests.solving import FIRST, label

SCRIPT = """
import json, sys
from score_sde.distributed import environment
environment.prepare()
import jax, jax.numpy as jnp, numpy as np
from score_sde import rng
from score_sde.distributed.mesh import MeshSettings, by_batch
from tests import solving

assert jax.device_count() == 8
spread = by_batch(MeshSettings().build())
sde, oracle = solving.MILD["vp"], solving.BIMODAL_3
denoiser, keys, results = oracle.denoiser(sde), solving.keys_of(64), {}
one = jax.devices()[0]


@jax.jit
def draw(keys):
    return sde.sigma(jnp.float32(sde.T)) * rng.normal(rng.child(keys, 0), (3,))


for name, options in solving.FIRST:
    solver = solving.solver_of(name, options)
    wide = name == "ode"
    with jax.enable_x64(wide):  # in float32 rounding may move a step's error across the tolerance: see test_samplers.py
        x = draw(keys).astype(jnp.float64 if wide else jnp.float32)
        plan, drive = solving.plan_of(solver, sde, "uniform", 8), solving.compiled(solver, denoiser)
        put = lambda *values, on: (jax.device_put(value, on) for value in values)
        alone = drive(plan, *put(x[37:38], keys[37:38], on=one))
        together = drive(plan, *put(x, keys, on=one))
        on_eight = drive(plan, *put(x, keys, on=spread))
        assert len(on_eight.x.sharding.device_set) == 8, name
        assert len(together.x.sharding.device_set) == 1, name
        together, on_eight, alone = jax.device_get((together, on_eight, alone))
        results[solving.label(name, options)] = {
            "eight": float(np.abs(on_eight.x - together.x).max()),
            "alone": float(np.abs(alone.x[0] - together.x[37]).max()),
            "size": float(np.abs(together.x).max()),
            "evaluations": bool(np.all(on_eight.evaluations == together.evaluations)),
            "failed": int(np.sum(on_eight.failed)),
            "distinct": len(np.unique(np.asarray(together.x), axis=0)),
        }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float]]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=program.environment(8),
        cwd=program.ROOT,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", [label(*case) for case in FIRST])
def test_a_sample_does_not_depend_on_its_batch_or_devices(case, results):
    found = results[case]
    assert found["distinct"] == 64
    assert found["failed"] == 0
    assert np.isfinite(found["size"])
    assert found["eight"] < 1e-5
    assert found["alone"] < 1e-5
    assert found["evaluations"]
