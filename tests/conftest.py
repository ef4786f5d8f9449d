"""Set before jax is imported: the platform, the convolution flag, and a compile cache shared by all tests.

And the fixtures of more than one file: a run to start from, jax's own rules, what is asked of an answer to bad input.
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "score_sde_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from score_sde.distributed import environment

environment.prepare()

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from score_sde.distributed import topology  # noqa: E402
from score_sde.evaluation import distances, memorisation, precision_recall  # noqa: E402
from tests import program, recorded  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a finished run of `program.FINISHED`. Not to be changed."""
    return program.finished_run(tmp_path_factory)


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of `finished`."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def jax_rules():
    """optax does not hold under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def compilations():
    """The programs that were compiled since, an entry each."""
    counted = []
    active = [True]

    def listener(event, _seconds, **_):
        if active and event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield counted
    active.clear()


@pytest.fixture
def tpus():
    """The devices of a TPU topology, to compile for; JAX's cache, which that switches off, as it was."""
    pytest.importorskip("libtpu", reason="the TPU's compiler is not installed: pip install -e '.[plan]'")
    cached = jax.config.jax_enable_compilation_cache
    yield topology.devices_of
    jax.config.update("jax_enable_compilation_cache", cached)
    compilation_cache.reset_cache()


@pytest.fixture
def refuse(capsys, compilations):
    """The line that main.py prints on bad input; see `check`."""

    def check(arguments: list[str], directory: Path, *, compiles: bool = False, says: str = "") -> str:
        """Checks that it is one line, the status, that nothing in `directory` was changed and, unless the answer needs
        a process's few coefficients (`compiles`), nothing compiled. says: what a config prints of itself."""
        before = program.snapshot(directory)
        capsys.readouterr()
        compilations.clear()
        assert program.main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == says
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert compiles or compilations == []
        assert program.snapshot(directory) == before
        return err

    return check


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """What one worker runs, since it shares what is compiled: a file, or of two long ones a network or a folder.

    xdist's own groups (`--dist loadgroup`) do nothing under pytest 9.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByWhatIsCompiled(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file, _, rest = nodeid.partition("::")
            parameters = rest.partition("[")[2].rstrip("]")
            if file.endswith("test_models.py"):
                return f"{file} {parameters.partition('-')[0]}"
            return f"{file} {parameters.partition('/')[0]}" if file.endswith("test_configs.py") else file

    return ByWhatIsCompiled(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def others():
    """Other projects' metrics, and what they were given."""
    return recorded.read("metrics.npz", "metrics")[1]


@pytest.fixture
def small_blocks(monkeypatch):
    """As if sets of features were many blocks large."""
    monkeypatch.setattr(distances, "BLOCK", 7)
    precision_recall._figures.cache_clear()
    precision_recall._radii.cache_clear()
    memorisation._two_nearest.cache_clear()
