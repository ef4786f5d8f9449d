"""Images of a user's own, in a folder or a zip, with any folders in it: `data.source=folder:PATH`.

What is an image and how it is decoded, `decoding` says; what its label is, and which are for testing, `listing`. Images
are cut to their central square and resized. A part whose images take up to 256 MB is decoded once and held in memory;
of a larger one each is decoded when it is asked for.

The fingerprint is that of the decoded images where they are held, and else of the files' names, sizes and labels, the
settings, and the contents of 1,000 files spread evenly.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from score_sde.data.decoding import CHANNELS, RESAMPLINGS, SUFFIXES, DamagedImage, Pixels, decode_image, to_square
from score_sde.data.listing import Files, list_items, numbered, open_files, size_or_none, split
from score_sde.data.on_demand import OnDemand, held_if_small, sampled
from score_sde.data.source import Records, SquareImages, digest_of
from score_sde.errors import Checks, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(SquareImages):
    """path: of the folder or zip. test_share: of the images, for testing where there is no `test/`. resampling: "area"
    or "lanczos". classes: 0 to leave labels out."""

    ARGUMENT = "path"

    path: str = ""
    test_share: float = 0.1
    resampling: str = "area"

    def __post_init__(self) -> None:
        with Checks() as check:
            self.check_images(check)
            check.that(self.channels in CHANNELS, f"channels must be 1 or 3, not {self.channels}")
            check.that(0 < self.test_share < 1, f"test_share must lie in (0, 1), not {self.test_share}")
            check.name("resampling", self.resampling, RESAMPLINGS)

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`, and `label` where there are classes. Raises UserError where there are
        no images, or labels do not fit."""
        if not self.path:
            raise UserError("data: which folder or zip? set data.source=folder:PATH")
        try:
            files = open_files(Path(self.path))
            items = list_items(files, SUFFIXES)
            labels = checked(*numbered(items, files.title), items, self.classes, files.title) if self.classes else None
            numbers = split(items, self.test_share)[name]
        except UserError as error:
            raise UserError(f"data: {error}") from error
        names = tuple(items[number].name for number in numbers)
        own = None if labels is None else labels[numbers]
        return held_if_small(ImageFiles(files, names, own, self.size, self.channels, self.resampling), self.shape)


@dataclasses.dataclass(frozen=True)
class ImageFiles(OnDemand):
    """Images of which each is a file. labels: None where there are none."""

    files: Files
    names: tuple[str, ...]
    labels: Int[np.ndarray, "records"] | None
    size: int
    channels: int
    resampling: str

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def fingerprint(self) -> str:
        def parts():
            yield from ("files", self.size, self.channels, self.resampling)
            for number, name in enumerate(self.names):
                yield from (name, size_or_none(self.files, name), self.label(number))
            for number in sampled(len(self)):
                try:
                    yield self.files.read(self.names[number])
                except OSError:  # it is named when an image is made of it
                    yield b""

        return digest_of(parts())

    def image(self, number: int) -> tuple[Pixels, int]:
        """See `OnDemand`."""
        try:
            content = self.files.read(self.names[number])
        except OSError as error:
            raise DamagedImage(error.strerror or str(error)) from error
        image = decode_image(content, self.channels)
        return to_square(image, self.size, self.resampling), self.label(number)

    def label(self, number: int) -> int:
        """See `OnDemand`."""
        return 0 if self.labels is None else int(self.labels[number])

    def name(self, number: int) -> str:
        """See `OnDemand`."""
        return f"{self.files.title}: {self.names[number]}"


def checked(
    labels: Int[np.ndarray, "items"], names: list[str] | None, items: list, classes: int, title: str
) -> Int[np.ndarray, "items"]:
    """The labels. names: of the classes, where they have names. Raises UserError where they are not of `classes`."""
    if names is not None:
        check_names(names, classes, title)
    wrong = int(np.argmax(labels))
    if labels[wrong] >= classes:
        there = f"data.classes={classes} has 0 to {classes - 1}"
        raise UserError(f"{title}: {items[wrong].name} has the label {labels[wrong]}; {there}")
    return labels


def check_names(names: list[str], classes: int, title: str) -> None:
    """Raises UserError unless these are the names of `classes`."""
    if len(names) != classes:
        listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise UserError(f"{title} has {len(names)} classes ({listed}): set data.classes={len(names)}, not {classes}")


def read_folder(
    folder: Path, shape: tuple[int, ...], levels: int
) -> tuple[UInt8[np.ndarray, "n height width channels"], list[str]]:
    """The images directly in `folder`, by name, and their names. A pixel's 8-bit value v becomes the level
    round(v (K − 1)/255), which undoes how the project's own pictures are made.

    Raises UserError where it is no readable folder, or holds no image, or one that is damaged or of another size than
    `shape`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give test, train or a folder of images")
    if len(shape) != 3 or shape[2] not in CHANNELS or not 2 <= levels <= 256:
        raise UserError(f"images from a folder need data of 1 or 3 channels and 256 levels, not {levels} of {shape}")
    try:
        paths = sorted(path for path in folder.iterdir() if _is_image(path))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    if not paths:
        raise UserError(f"there is no image in {folder}; it takes files ending in {', '.join(SUFFIXES)}")
    values = np.stack([_read(path, shape) for path in paths])
    return np.round(values.astype(np.float64) * (levels - 1) / 255).astype(np.uint8), [path.name for path in paths]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read(path: Path, shape: tuple[int, ...]) -> Pixels:
    height, width, channels = shape
    try:
        image = decode_image(path.read_bytes(), channels)
    except (DamagedImage, OSError) as error:
        raise UserError(f"{path}: {error}") from error
    if image.shape != shape:
        raise UserError(f"{path} is {image.shape[1]}x{image.shape[0]} pixels, the model's images are {width}x{height}")
    return image
