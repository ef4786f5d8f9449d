"""The workdir: `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events, `samples/`, `reports/`; where
averages have lengths `ema_snapshots/`, and what --mode=ema makes of them, `ema/`; `earlier_N/`, see `set_aside`.

It belongs to one training run. Settings that say how the trained model is used afterwards, how long training
goes on and what is logged may change between runs; everything else is fixed by the first.
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax

from score_sde.distributed.processes import together
from score_sde.errors import RunFailed, UserError
from score_sde.writers import say, write_json

# The classifier is trained beside the score network, and its own workdir holds it to its settings.
CHANGEABLE = (
    "sampling",
    "sampling_sde",
    "samplers",
    "likelihood",
    "evaluation",
    "metrics",
    "extractors",
    "compare",
    "mesh",
    "classifier",
    "profile",
    "plan",
)
CHANGEABLE_TRAINING = (
    *("duration", "log_every", "sample_every", "save_every", "ema_snapshot_every", "keep_checkpoints", "keep_every"),
    *("accumulate", "steps_per_call", "workers"),  # how the same steps are computed
)


class Workdir:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "ema_snapshots"
        self.samples = path / "samples"
        self.reports = path / "reports"
        self.profile = path / "profile"

    def average(self, length: float) -> Path:
        """Where --mode=ema puts the average of a length."""
        return self.path / "ema" / f"{length:g}"

    def check(self, config: dict[str, Any], *, needs_checkpoint: bool) -> None:
        """Raises UserError unless the directory can be used for `config`; changes nothing."""
        try:
            self.path.exists()
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be written: {error.strerror}") from error
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is not a directory")
        existing = next(parent for parent in [self.path, *self.path.absolute().parents] if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"--workdir={self.path} cannot be written: {existing} is not a writable directory")
        for folder in (
            self.checkpoints,
            self.snapshots,
            self.path / "ema",
            self.samples,
            self.samples / "training",
            self.reports,
        ):
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder} is in the way: it is not a directory; use another --workdir")
        for file in (self.config, self.path / "metrics.jsonl"):
            if file.exists() and not file.is_file():
                raise UserError(f"{file} is in the way: it is not a file; use another --workdir")
        if self.config.exists():
            self._check_same(config)
        elif self.path.is_dir() and self.checkpoints.exists():
            raise UserError(f"--workdir={self.path} holds checkpoints but no config.json; use another directory")
        if needs_checkpoint and not self.config.exists():
            raise UserError(f"--workdir={self.path} holds no trained model; run with --mode=train first")

    def create(self, config: dict[str, Any]) -> None:
        """Makes the directory and saves the resolved config; process 0 does."""
        with together():
            try:
                if jax.process_index() == 0:
                    self.samples.mkdir(parents=True, exist_ok=True)
                    self.reports.mkdir(exist_ok=True)
                    write_json(self.config, config)
            except (OSError, RunFailed) as error:
                raise UserError(f"--workdir={self.path} cannot be written: {error}") from error
        with together():  # after process 0
            if not self.config.exists():
                shared = "it must be on storage that all hosts share"
                raise UserError(f"--workdir={self.path} as process 0 made it is not here: {shared}")

    def set_aside(self) -> None:
        """Moves what an earlier model left, whose checkpoints were removed, into `earlier_N`: averages that --mode=ema
        would combine with the next model's, and evaluations that would stand beside its own. Process 0 does."""
        with together():
            made = (self.snapshots, self.path / "ema", self.reports / "evaluation")
            found = [path for path in made if path.exists()] if jax.process_index() == 0 else []
            if found:
                numbered = (self.path / f"earlier_{number}" for number in itertools.count(1))
                place = next(path for path in numbered if not path.exists())
                place.mkdir()
                for path in found:
                    path.rename(place / path.name)
                names = ", ".join(path.name for path in found)
                say(f"train: there is no checkpoint, so {names} of an earlier model went to {place}")

    def _check_same(self, config: dict[str, Any]) -> None:
        try:
            saved = json.loads(self.config.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} cannot be read: {error}") from error
        if not isinstance(saved, dict):
            raise UserError(f"{self.config} cannot be read: it holds no config")
        old, new = fixed(saved), fixed(config)
        different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if different:
            shown = ", ".join(
                f"{key} is {old.get(key, 'absent')} there and {new.get(key, 'absent')} here" for key in different
            )
            raise UserError(f"--workdir={self.path} is of another config: {shown}; use another --workdir")


def fixed(config: dict[str, Any]) -> dict[str, Any]:
    """What may not change within a workdir, as dotted keys."""
    flat: dict[str, Any] = {}
    for section, value in config.items():
        if section in CHANGEABLE:
            continue
        if not isinstance(value, dict):
            flat[section] = value
            continue
        for key, entry in value.items():
            if not (section == "training" and key in CHANGEABLE_TRAINING):
                flat[f"{section}.{key}"] = entry
    return flat
