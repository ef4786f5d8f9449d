"""score_sde: train, sample and evaluate diffusion models from a config file.

    python main.py --config=FILE[:ARGUMENT] --workdir=DIR [--mode=MODE] [--config.SECTION.KEY=VALUE ...]
                   [--distributed=auto|on|off]
    python main.py --config=… --workdir=DIR --mode=import --import.file=FILE

Exit status: 0 done; 1 the work failed, e.g. training diverged or a disk is full; 2 bad input, nothing changed;
75 stopped by SIGTERM or Ctrl-C, on any host, with everything saved: the same command goes on from there.
"""

import shlex
import sys
from pathlib import Path

from score_sde.command_line import parse
from score_sde.distributed import environment
from score_sde.errors import RunFailed, UserError, in_one_line
from score_sde.training.interrupt import EXIT_STATUS, Interrupted, StopRequest


def main(arguments: list[str]) -> int:
    """Runs one mode; the exit status."""
    with StopRequest() as stop:  # before the slow imports, so that no signal is lost
        from score_sde import build, experiment
        from score_sde.distributed import processes

        try:
            with in_one_line():
                flags, overrides, own = parse(arguments, __doc__, experiment.MODES, experiment.ALONE)
                if flags.mode in experiment.ALONE:
                    experiment.ALONE[flags.mode](stop)
                    return 0
                processes.start("off" if flags.mode == "plan" else flags.distributed)
                stop.agree_by(processes.stop_agreement())
                command = shlex.join(["python", "main.py", *arguments])
                with processes.together():
                    built = build.build(
                        build.load_config(flags.config),
                        overrides,
                        Path(flags.workdir) if flags.workdir else None,
                        command,
                        planned=flags.mode == "plan",
                    )
                    kind = experiment.MODES[flags.mode].options
                    options = None if kind is None else build.options(kind, own, flags.mode)
                processes.check_alike({"mode": flags.mode, "workdir": flags.workdir, **built.config})
                stop.check()
                experiment.run(flags.mode, built, stop, options)
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
            processes.leave_unless_all_do(error, 2)
            return 2
        except Interrupted as signal:
            print(f"stopped by {signal}; what was done is saved, the same command goes on from there", file=sys.stderr)
            return EXIT_STATUS
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            processes.leave_unless_all_do(error, 1)
            return 1
        except Exception as error:  # alone: as it came; of several: printed, and the others not waited for
            if processes.several():
                processes.leave(error)
            raise
    return 0


if __name__ == "__main__":
    environment.restart_with_huge_pages()
    environment.prepare()  # before jax is imported
    sys.exit(main(sys.argv[1:]))
