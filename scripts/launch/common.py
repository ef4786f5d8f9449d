"""What the launchers share: names that no shell can misread, main.py's command line, commands that are shown or run.

Imports the standard library and what of `score_sde` imports no jax: a launcher runs on a laptop without it.
"""

import argparse
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from score_sde.distributed import slices
from score_sde.errors import Checks, RunFailed, UserError, in_one_line

ROOT = Path(__file__).resolve().parent.parent.parent
MOUNT = "/mnt/shared"  # where a bucket, an NFS export or a volume claim is mounted on every host

_CHIPS_A_HOST = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu:
    """accelerator: the prefix of Cloud TPU's accelerator types, which count `cores_per_chip` a chip.

    runtime: the VM image. gke: the value of the node label `cloud.google.com/gke-tpu-accelerator`.
    """

    accelerator: str
    cores_per_chip: int
    runtime: str
    gke: str


TPUS = {
    "v4": Tpu(
        accelerator="v4",
        cores_per_chip=2,
        runtime="tpu-ubuntu2204-base",
        gke="tpu-v4-podslice",
    ),
    "v5e": Tpu(
        accelerator="v5litepod",
        cores_per_chip=1,
        runtime="v2-alpha-tpuv5-lite",
        gke="tpu-v5-lite-podslice",
    ),
    "v5p": Tpu(
        accelerator="v5p",
        cores_per_chip=2,
        runtime="v2-alpha-tpuv5",
        gke="tpu-v5p-slice",
    ),
    "v6e": Tpu(
        accelerator="v6e",
        cores_per_chip=1,
        runtime="v2-alpha-tpuv6e",
        gke="tpu-v6e-slice",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """One slice, as the planner names it: `v5e:16x16`."""

    tpu: Tpu
    shape: str

    @property
    def chips(self) -> int:
        product = 1
        for side in self.shape.split("x"):
            product *= int(side)
        return product

    @property
    def hosts(self) -> int:
        """Of four chips each, but for the small flat slices, which are one host."""
        flat = self.shape.count("x") == 1
        return 1 if flat and self.chips <= 2 * _CHIPS_A_HOST else self.chips // _CHIPS_A_HOST

    @property
    def accelerator_type(self) -> str:
        return f"{self.tpu.accelerator}-{self.chips * self.tpu.cores_per_chip}"


def topology(text: str) -> Topology:
    """`v5e:16x16`. Raises UserError with what is valid."""
    kind, shape = slices.check(text, "--topology")
    return Topology(tpu=TPUS[kind], shape=shape)


def _matcher(pattern: str, what: str) -> Callable[[str], str]:
    """An argument's type: text that is wholly `pattern`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
        return text

    return check


name = _matcher(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "1 to 40 of a-z, 0-9 and -, the first a letter, the last no -")
zone = _matcher(r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone such as us-west4-a")
bucket = _matcher(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", "a bucket's name, without gs://")
export = _matcher(r"[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*", "SERVER:/PATH")
word = _matcher(r"[A-Za-z0-9_][A-Za-z0-9_.,:/@=+-]*", "letters, digits and _ . , : / @ = + -")
option = _matcher(r"--[a-z][a-z-]*(=[A-Za-z0-9_.,:/@=+&|*-]+)?", "--OPTION or --OPTION=VALUE, without blanks")
shared = _matcher(r"/[A-Za-z0-9_.@=+/-]+", "an absolute path of letters, digits and _ . @ = + - / that every host sees")


def positive(text: str) -> int:
    """A number of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Knows `--dry-run`, and takes what follows `--` for main.py."""

    def __init__(self, description: str | None, actions: Sequence[str]) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        self.add_argument("action", choices=actions, metavar="ACTION", help=", ".join(actions))
        self.add_argument("--name", required=True, type=name, help="of the run")
        self.add_argument("--dry-run", action="store_true", help="print the commands and run none of them")

    def parse(self, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The flags, and main.py's arguments, each as --FLAG=VALUE. Raises UserError."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        flags, rest = self.parse_args(arguments[:end]), _joined(arguments[end + 1 :])
        if flags.action != "start" and rest:
            raise UserError(f"{flags.action} takes nothing after --; start alone passes it to main.py")
        return flags, rest

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see --help")


def _joined(arguments: list[str]) -> list[str]:
    """main.py's arguments with each value joined to its flag, which main.py takes apart as well."""
    joined: list[str] = []
    for argument in arguments:
        flag = joined[-1] if joined else ""
        if flag.startswith("--") and "=" not in flag and not argument.startswith("--"):
            joined[-1] = f"{flag}={argument}"
        else:
            joined.append(argument)
    return joined


def main_arguments(arguments: list[str], hosts: int, under: str = "/") -> list[str]:
    """main.py and its arguments, so that it fails where it does not find the other hosts.

    under: the folder that all hosts see. Raises UserError where the workdir is not in it, or the config is not there.
    """
    values = dict(argument.partition("=")[::2] for argument in arguments)
    config, seen = values.get("--config", "").partition(":")[0], workdir(arguments)
    with Checks() as check:
        check.that(bool(config), "--config=FILE is missing after --")
        check.that(not config or (ROOT / config).is_file(), f"--config={config} is no file of {ROOT}")
        check.that(bool(seen), "--workdir=DIR is missing after --")
        check.that("://" not in seen, f"--workdir={seen}: a bucket is used as a mounted folder, see docs/pods.md")
        inside = "://" in seen or (seen.startswith("/") and Path(seen).is_relative_to(under))
        within = f"a folder in {under}" if under != "/" else "an absolute path"
        check.that(not seen or inside, f"--workdir={seen} must be {within}, on storage that every host sees")
        check.that("--distributed" not in values, "--distributed is set by the launcher")
        unsafe = [argument for argument in arguments if "$" in argument or not argument.isprintable()]
        check.that(not unsafe, f"systemd and Kubernetes would expand or break {unsafe}: no $ and one line each")
    # One host has nobody to find; of several, one that comes up alone must not train on its own.
    return ["main.py", f"--distributed={'on' if hosts > 1 else 'auto'}", *arguments]


def workdir(arguments: list[str]) -> str:
    """Of main.py's arguments; empty where there is none."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("--workdir=")]
    return os.path.normpath(given[-1]) if given and "://" not in given[-1] else "".join(given[-1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """argv: program and arguments. stdin: what it reads."""

    argv: tuple[str, ...]
    stdin: str | None = None

    def __str__(self) -> str:
        """As a shell would take it."""
        line = shlex.join(self.argv)
        return line if self.stdin is None else f"{line} <<'END_OF_INPUT'\n{self.stdin.rstrip()}\nEND_OF_INPUT"


def command(*argv: str, stdin: str | None = None) -> Command:
    return Command(argv=argv, stdin=stdin)


def run(commands: Sequence[Command], *, dry_run: bool, install: dict[str, str]) -> int:
    """Runs the commands in order up to the first that fails; its exit status, or 0. With dry_run, prints them.

    What is printed is a shell script that does the same. install: for each program, what brings it.
    """
    if dry_run:
        print("\n".join(["set -e", *map(str, commands)]))
        return 0
    for program in dict.fromkeys(each.argv[0] for each in commands):
        if shutil.which(program) is None:
            raise UserError(f"{program} is not on the PATH; {install.get(program, f'install {program}')}")
    for each in commands:
        print(f"+ {shlex.join(each.argv)}", file=sys.stderr, flush=True)
        status = _call(each)
        if status:
            print(f"error: {each.argv[0]} ended with status {status}", file=sys.stderr)
            return status
    return 0


def _call(each: Command) -> int:
    """Its exit status; after Ctrl-C, as with `logs`, that of a shell."""
    try:
        status = subprocess.run(each.argv, input=each.stdin, text=True, check=False).returncode
    except KeyboardInterrupt:
        return 130
    return status if status >= 0 else 128 - status


def launch(plan: Callable[[list[str]], tuple[list[Command], bool]], install: dict[str, str]) -> int:
    """Runs what `plan` makes of the command line; the exit status, 2 for bad input."""
    try:
        with in_one_line():
            commands, dry_run = plan(sys.argv[1:])
            return run(commands, dry_run=dry_run, install=install)
    except (UserError, RunFailed) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
