"""Sounds as WAV files of 16 bits."""

import functools
import wave
from pathlib import Path

import numpy as np
from jaxtyping import UInt16

from score_sde.writers import write_atomically


def write_sounds(folder: Path, sounds: UInt16[np.ndarray, "n time channels"], rate: int) -> None:
    """Each as `folder`/00.wav, 01.wav, …. rate: samples a second."""
    folder.mkdir(exist_ok=True)
    for number, sound in enumerate(sounds):
        write_atomically(folder / f"{number:02d}.wav", functools.partial(_write, sound=sound, rate=rate))


def _write(path: Path, sound: UInt16[np.ndarray, "time channels"], rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((sound.shape[1], 2, rate, len(sound), "NONE", "not compressed"))
        file.writeframes((sound.astype(np.int32) - 2**15).astype("<i2").tobytes())
