"""A folder or zip of images, scored as samples are: `evaluation.images=DIR`. No checkpoint is needed.

Its images are of one size. Extractors that bring images to a size of their own compare them with data of any size;
the others need images of the data's size.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.data.decoding import CHANNELS, SUFFIXES, DamagedImage, decode_image, stored_size
from score_sde.data.listing import Files, ending_in, open_files
from score_sde.errors import UserError
from score_sde.evaluation.extractors import Extractor
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, alone, discard, run_batches
from score_sde.experiment.evaluating import real
from score_sde.experiment.evaluating.figures import Reference, line
from score_sde.experiment.evaluating.samples import check_extractors, features_of, looked_at
from score_sde.training.interrupt import StopRequest
from score_sde.writers import say, write_json

NAME = "images"
LEVELS = 256


def check(experiment: Experiment) -> int:
    """How many images there are. Raises UserError where that is less than two, or an extractor is not for them."""
    files, names = _listed(experiment)
    check_extractors(experiment, _decoded(files, names[0], experiment).shape)
    return len(names)


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Writes reports/images.json and prints it."""
    files, names = _listed(experiment)
    shape = _decoded(files, names[0], experiment).shape
    extractors = {
        name: settings.build(shape, LEVELS, experiment.mesh) for name, settings in experiment.extractors.items()
    }
    of_data = _of_data(experiment, extractors, shape)
    seed = experiment.metrics.seed
    shuffled = np.random.default_rng(seed).permutation(np.array(names, object)).tolist()  # parts are scored, too
    key = _fingerprint(files, names, extractors, shape, seed)
    reference = Reference(experiment, of_data, len(names))
    reference.prepare(stop)

    def compute(number: int) -> Arrays:
        chosen = shuffled[number * real.BATCH : (number + 1) * real.BATCH]
        images = [_decoded(files, name, experiment) for name in chosen]
        for name, image in zip(chosen, images, strict=True):
            if image.shape != shape:
                raise _other_size(files, name, image.shape, names[0], shape)
        return looked_at(extractors, np.stack(images))

    title = _bytes(files.title).decode(errors="backslashreplace")  # it is printed
    reports = experiment.workdir.reports
    with alone(reports / f".{NAME}.lock", f"evaluate {title}", stop):
        count = -(-len(names) // real.BATCH)
        parts = run_batches(f"evaluate {title}", reports / f".{NAME}", key, count, compute, stop)
        if jax.process_index() == 0:
            figures = reference.figures({NAME: features_of(extractors, parts)})
            told: dict[str, Any] = {"images": title, "samples": len(names), "size": list(shape)}
            told |= {"reference": real.described(experiment), "metrics": figures}
            write_json(reports / f"{NAME}.json", told)
            for text in lines(told):
                say(text)
        discard(reports / f".{NAME}")


def lines(told: dict[str, Any]) -> list[str]:
    """The figures of a folder as text."""
    size = "x".join(map(str, told["size"][:2]))
    return [
        f"{told['samples']} images of {size} in {told['images']}",
        *(line(row, NAME) for row in told["metrics"].values()),
    ]


def _of_data(experiment: Experiment, extractors: dict[str, Extractor], shape: tuple[int, ...]) -> dict[str, Extractor]:
    """The same extractors for the data's own size."""
    source = experiment.source
    if shape == source.shape and source.levels == LEVELS:
        return extractors
    built = {}
    for name, settings in experiment.extractors.items():
        built[name] = settings.build(source.shape, source.levels, experiment.mesh)
        if built[name].fingerprint != extractors[name].fingerprint or built[name].dim != extractors[name].dim:
            sizes = f"{'x'.join(map(str, shape))} and {'x'.join(map(str, source.shape))}"
            raise UserError(
                f"evaluation.images: {name!r} does not compare images of {sizes}; use an extractor that resizes them"
            )
    return built


def _listed(experiment: Experiment) -> tuple[Files, list[str]]:
    path = Path(experiment.evaluation.images)
    try:
        files = open_files(path)
        names = ending_in(files, SUFFIXES)
    except UserError as error:
        raise UserError(f"evaluation.images: {error}") from error
    if len(names) < 2:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"evaluation.images: {path} holds {len(names)} images; it takes two or more, ending in {kinds}")
    return files, names


def _fingerprint(
    files: Files, names: list[str], extractors: dict[str, Extractor], shape: tuple[int, ...], seed: int
) -> str:
    """Of all that the images' features depend on, their bytes before all. Raises UserError where one that is not read
    yet is damaged or of another size as far as its first bytes tell."""
    digest = hashlib.sha256(f"{[each.fingerprint for each in extractors.values()]} {shape} {seed}".encode())
    for name in names:
        content = _read(files, name)
        with _named(files, name):
            size = stored_size(content)
        if sorted(size) != sorted(shape[:2]):
            raise _other_size(files, name, size, names[0], shape)
        digest.update(_bytes(f"{name}\n") + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _bytes(name: str) -> bytes:
    """As it is on the disk: a file's name need not be UTF-8."""
    return name.encode(errors="surrogateescape")


def _read(files: Files, name: str) -> bytes:
    try:
        return files.read(name)
    except OSError as error:
        raise UserError(f"evaluation.images: {files.title}: {name} cannot be read: {error}") from error


def _decoded(files: Files, name: str, experiment: Experiment) -> np.ndarray:
    channels = experiment.source.shape[-1]
    if len(experiment.source.shape) != 3 or channels not in CHANNELS:
        raise UserError(f"evaluation.images is for data that are images, not of shape {experiment.source.shape}")
    with _named(files, name):
        return decode_image(_read(files, name), channels)


@contextlib.contextmanager
def _named(files: Files, name: str) -> Iterator[None]:
    try:
        yield
    except DamagedImage as error:
        raise UserError(f"evaluation.images: {files.title}: {name} cannot be read: {error}") from error


def _other_size(files: Files, name: str, size: tuple[int, ...], first: str, of_first: tuple[int, ...]) -> UserError:
    """size, of_first: (height, width, …)."""
    sizes = f"{size[1]}x{size[0]} pixels, {first} has {of_first[1]}x{of_first[0]}"
    return UserError(f"evaluation.images: {files.title}: {name} has {sizes}; they must be of one size")
