"""The variance of the bound's estimate under a learned schedule, and under the straight one between the same ends.

    python scripts/bound_variance.py --config=configs/digits.py:vdm --workdir=runs/vdm [--draws=16]

The bound itself is the same for both, since its diffusion term is an integral over log_snr; the network and the ends
are the trained ones. Each image's diffusion term is estimated with one time and one noise, `draws` times over.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from score_sde.distributed import environment

environment.prepare()

import argparse  # noqa: E402
import math  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from score_sde import build, rng  # noqa: E402
from score_sde.data import whole  # noqa: E402
from score_sde.errors import UserError  # noqa: E402
from score_sde.experiment.base import sample_indices  # noqa: E402
from score_sde.losses import Times, bound_terms  # noqa: E402
from score_sde.losses.times import Uniform  # noqa: E402


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--draws", type=int, default=16)
    flags = parser.parse_args(arguments)
    try:
        config = build.load_config(flags.config)
        experiment, step, params = build.build(config, {}, Path(flags.workdir), " ".join(arguments)).restore()
        if not experiment.sde.learned:
            raise UserError(f"--config={flags.config} has no learned schedule; sde.name must be vdm")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    straight = {**params["process"], "shape": experiment.sde.init()["shape"]}
    images = jnp.asarray(whole(experiment.test_records, "image"))
    bits = 1 / (math.prod(experiment.source.shape) * math.log(2))
    times = Times(Uniform())

    @jax.jit
    def diffusion(process, draw):
        keys = rng.for_samples(rng.at_step(rng.stream(0, "bound variance"), draw), sample_indices(0, len(images)))
        x = experiment.levels.dequantise(images, rng.child(keys, 0))
        denoiser = experiment.model.denoiser({**params, "process": process})
        t, factor = times.draw(denoiser.sde, rng.child(keys, 1), ())
        return bits * bound_terms(denoiser, x, None, rng.child(keys, 2), t, factor).diffusion

    variances = {}
    print(f"step {step}: diffusion term of the bound on {len(images)} test images, {flags.draws} draws, in bits/dim")
    for name, process in (("learned", params["process"]), ("straight", straight)):
        values = np.stack([np.asarray(diffusion(process, draw), np.float64) for draw in range(flags.draws)])
        variances[name] = values.var()
        error = values.std() / math.sqrt(values.size)
        print(f"{name:9s} mean {values.mean():.4f} ± {error:.4f}   variance of one draw {values.var():.4f}")
    print(f"variance, learned over straight: {variances['learned'] / variances['straight']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
