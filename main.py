"""score_sde: train, sample and evaluate diffusion models from a config file.

    python main.py --config=FILE[:ARGUMENT] --workdir=DIR [--mode=MODE] [--config.SECTION.KEY=VALUE ...]
    python main.py --config=… --workdir=DIR --mode=import --import.file=FILE

Exit status: 0 done; 1 the work failed, e.g. training diverged; 2 bad input, nothing changed; 75 stopped by SIGTERM
or Ctrl-C with everything saved: the same command goes on from there.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from score_sde.distributed import environment
from score_sde.errors import Checks, RunFailed, UserError
from score_sde.training.interrupt import EXIT_STATUS, Interrupted, StopRequest


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(message)


def parse(
    arguments: list[str], modes: Mapping[str, Any], alone: Iterable[str]
) -> tuple[argparse.Namespace, dict[str, str], dict[str, str]]:
    """The flags, the config's overrides and the mode's own options as dotted key to text.

    alone: modes that take no config and no workdir.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="a config file, see configs/")
    parser.add_argument("--workdir", metavar="DIR", help="where everything of this run is kept")
    parser.add_argument("--mode", default="all", help=f"one of {', '.join((*modes, *alone))} (default: all)")
    flags, rest = parser.parse_known_args(arguments)
    groups: dict[str, dict[str, str]] = {"config": {}}
    if flags.mode in modes and modes[flags.mode].options is not None:
        groups[flags.mode] = {}
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        group, dot, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or not dot or group not in groups:
            keys = ", ".join(
                ["--config.SECTION.KEY=VALUE", *(f"--{mode}.KEY=VALUE" for mode in groups if mode != "config")]
            )
            raise UserError(f"unknown flag {flag}; valid: --config, --workdir, --mode, {keys}")
        if not equals:
            if not rest:
                raise UserError(f"{flag} needs a value")
            value = rest.pop(0)
        groups[group][key] = value
    with Checks() as check:
        check.name("mode", flags.mode, (*modes, *alone))
        wanted = flags.mode not in alone
        for name in ("config", "workdir"):
            missing = f"--{name} is missing; see python main.py --help"
            check.that(bool(getattr(flags, name)) == wanted, missing if wanted else f"{flags.mode} takes no --{name}")
        check.that(wanted or not groups["config"], f"{flags.mode} takes no --config keys")
    return flags, groups["config"], groups.get(flags.mode, {})


def main(arguments: list[str]) -> int:
    """Runs one mode; the exit status."""
    with StopRequest() as stop:  # before the slow imports, so that no signal is lost
        from score_sde import build, experiment

        try:
            flags, overrides, own = parse(arguments, experiment.MODES, experiment.ALONE)
            if flags.mode in experiment.ALONE:
                experiment.ALONE[flags.mode](stop)
                return 0
            command = shlex.join(["python", "main.py", *arguments])
            built = build.build(build.load_config(flags.config), overrides, Path(flags.workdir), command)
            kind = experiment.MODES[flags.mode].options
            options = None if kind is None else build.options(kind, own, flags.mode)
            stop.check()
            experiment.run(flags.mode, built, stop, options)
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2
        except Interrupted as signal:
            print(f"stopped by {signal}; what was done is saved, the same command goes on from there", file=sys.stderr)
            return EXIT_STATUS
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    environment.prepare()  # before jax is imported
    sys.exit(main(sys.argv[1:]))
