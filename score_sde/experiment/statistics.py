"""--mode=statistics: features of the real data by each extractor, kept for every later evaluation.

    python main.py --mode=statistics --config=CONFIG [--config.evaluation.extractors=…]

Of both splits. The file that it names has `mu` and `sigma`, as other projects' statistics do. Evaluation makes what it
lacks by itself. See `evaluating.real` for where they are kept and when they are used again.
"""

from score_sde.experiment.base import Experiment
from score_sde.experiment.evaluating import real, samples
from score_sde.training.interrupt import StopRequest


def check(experiment: Experiment) -> None:
    """Raises UserError where they cannot be made, or kept."""
    samples.check_extractors(experiment, experiment.source.shape)
    real.check_folder(real.folder(experiment))


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Does what is not done."""
    for extractor in samples.built(experiment).values():
        for split in real.SPLITS:
            real.features(experiment, extractor, split, stop)
