"""Checkpoints of score_sde_pytorch: outputs recorded with the original code, and files that are not to be read.

The fixtures were made by that code with random weights moved off their initial values, in both layouts of
`torch.save`; what raises there was mended first: two up-sampling functions in today's PyTorch (a positional argument of
`interpolate`, a flip), and for ncsn what `docs/importing.md` lists.
"""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network
from score_sde.pretrained import score_sde_pytorch
from score_sde.pretrained.load import load, save
from score_sde.pretrained.pickles import Record
from score_sde.pretrained.torch_files import read_checkpoint
from tests import program
from tests.networks import quick_jit

FOLDER = Path(__file__).parent / "fixtures" / "score_sde_pytorch"
NAMES = ["pyramids", "residual", "ddpm", "options", "ncsn"]
CONFIG = program.ROOT / "configs" / "score_sde_pytorch.py"


def network_of(name):
    kind, settings = score_sde_pytorch.settings_of(json.loads((FOLDER / f"{name}.json").read_text()))
    return Network(NETWORKS[kind](**settings), (16, 16, 3))


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_outputs_come_out(name):
    network, recorded = network_of(name), np.load(FOLDER / f"{name}.npz")
    loaded = load(FOLDER / f"{name}.pth", network)
    assert loaded.step == 7
    output = quick_jit(lambda params, x, t: network.apply(params, x, t, None, train=False, rng=None))
    for params, which in ((loaded.raw, "raw"), (loaded.average, "ema")):
        given, wanted = output(params, jnp.asarray(recorded["x"]), jnp.asarray(recorded["t"])), recorded[which]
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_raw_weights_take_the_place_of_the_average():
    network = network_of("pyramids")
    loaded = load(FOLDER / "pyramids.pth", network, "raw")
    jax.tree.map(np.testing.assert_array_equal, loaded.average, loaded.raw)
    with pytest.raises(UserError, match="did you mean 'raw'"):
        load(FOLDER / "pyramids.pth", network, "row")


def test_safetensors_are_read_back(tmp_path):
    network = network_of("pyramids")
    params = load(FOLDER / "pyramids.pth", network).average
    save(tmp_path / "a.safetensors", params, {"config": "{}"})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "a.safetensors", network).average, params)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated, damaged"):
        load(tmp_path / "b.safetensors", network)
    with pytest.raises(UserError, match="does not fit the config's network"):
        load(tmp_path / "a.safetensors", network_of("residual"))


# --- through main.py -------------------------------------------------------------------------------------------------


def run(workdir, mode, *own, name="pyramids"):
    return program.main(program.flags(workdir, mode, *own, config=f"{CONFIG}:{FOLDER / name}.json"))


SMALL = ("--config.samplers.pc.steps=2", "--config.sampling.num_samples=2", "--config.sampling.batch_size=2")


def test_every_mode_works_on_what_was_imported(tmp_path):
    """import, sample, export; import of the export, and the same samples; and training goes on from there."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(first, "import", f"--import.file={FOLDER / 'pyramids.pth'}") == 0
    assert run(first, "sample", *SMALL) == 0
    assert run(first, "export") == 0
    exported = first / "export" / "7.safetensors"
    assert run(second, "import", f"--import.file={exported}") == 0
    assert run(second, "sample", *SMALL) == 0
    one, two = (np.load(folder / "samples" / "pc.npz") for folder in (first, second))
    for key in ("x", "image"):
        if key in one:
            np.testing.assert_array_equal(one[key], two[key])
    tiny = ("--config.training.duration=8 steps", "--config.data.records=4")
    with pytest.raises(AssertionError):  # the data's size is not what training may change
        assert run(first, "train", *tiny) == 0
    assert run(first, "train", tiny[0]) == 0


def test_a_workdir_with_checkpoints_is_refused(tmp_path, capsys):
    file = f"--import.file={FOLDER / 'pyramids.pth'}"
    assert run(tmp_path / "run", "import", file) == 0
    assert run(tmp_path / "run", "import", file) == 2
    assert "holds checkpoints already" in capsys.readouterr().err


class Evil:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"mkdir {self.folder}",)


def malicious(tmp_path):
    file = tmp_path / "evil.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Evil(tmp_path / "made"), "ema": 1, "step": 1}))
    return file


def truncated(tmp_path):
    file = tmp_path / "short.pth"
    file.write_bytes((FOLDER / "residual.pth").read_bytes()[:-1000])
    return file


def cut_archive(tmp_path):
    file = tmp_path / "cut.pth"
    file.write_bytes((FOLDER / "pyramids.pth").read_bytes()[:5000])
    return file


def no_checkpoint(tmp_path):
    file = tmp_path / "text.pth"
    file.write_text("hello")
    return file


def of_another_network(tmp_path):
    return FOLDER / "ddpm.pth"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (malicious, "system, which is refused"),
        (truncated, "truncated, damaged or no checkpoint"),
        (cut_archive, "truncated, damaged or no checkpoint"),
        (no_checkpoint, "truncated, damaged or no checkpoint"),
        (of_another_network, "does not fit the config's network"),
        (lambda tmp_path: tmp_path / "absent.pth", "there is no file"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(make, message, tmp_path, capsys):
    assert run(tmp_path / "run", "import", f"--import.file={make(tmp_path)}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--import.file=FILE names the checkpoint"),
        (("--import.fil=x",), "did you mean 'file'"),
        (("--import.file=x", "--import.weights=emma"), "did you mean 'ema'"),
        (("--export.file=x",), "unknown flag --export.file"),
    ],
)
def test_wrong_options_are_one_line(flags, message, tmp_path, capsys):
    assert run(tmp_path / "run", "import", *flags) == 2
    assert message in capsys.readouterr().err


# --- the reader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        b"cposix\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n(S'a'\nS'b'\ntR.",
        b"ctorch.hub\nload\n(S'a'\ntR.",
        b"cnumpy\nload\n(S'a'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01a\x85R.",
        b"\x80\x04\x8c\x10torch.nn.modules\x8c\x0c__builtins__\x93.",
    ],
)
def test_names_that_are_not_data_are_refused(stream, tmp_path):
    file = tmp_path / "a.pkl"
    file.write_bytes(stream)
    with pytest.raises(UserError, match="which is refused"):
        read_checkpoint(file)


def test_a_stream_cannot_change_the_functions_of_the_reader(tmp_path):
    """BUILD with a slot state sets attributes of whatever a name stands for."""
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x04\x00\x00\x00nameK\x01s\x86b.")
    with pytest.raises(UserError, match="a function that is given a state"):
        read_checkpoint(file)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """A stride or an offset that reaches outside would show the memory of the process."""
    for size, stride, offset in (((4,), (1,), 0), ((2,), (2,), 0), ((1,), (1,), 3), ((2, 2), (-1, 1), 0)):
        stream = io.BytesIO()
        pickler = _Writer(stream, size, stride, offset)
        pickler.dump(_Tensor())
        file = tmp_path / "a.pth"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", stream.getvalue())
            archive.writestr("a/data/0", np.zeros(2, np.float32).tobytes())
        with pytest.raises(UserError, match="truncated, damaged"):
            read_checkpoint(file)


class _Tensor:
    pass


class _Writer(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what torch.save would of a tensor, with a size, stride and offset of one's own."""

    def __init__(self, stream, size, stride, offset):
        super().__init__(stream, 2)
        self.parts = (size, stride, offset)

    def save(self, value, save_persistent_id=True):
        if not isinstance(value, _Tensor):
            super().save(value, save_persistent_id)
            return
        size, stride, offset = self.parts
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        self.write(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ")
        for part in (offset, size, stride):
            super().save(part)
        self.write(b"tR")


def test_modules_of_other_packages_become_records(tmp_path):
    """What NVIDIA's snapshots hold besides persistent objects: inert, whatever they claim to be."""
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x02ctorch.nn.modules.activation\nSiLU\n)\x81}X\x01\x00\x00\x00aK\x01sb.")
    record = read_checkpoint(file)
    assert isinstance(record, Record)
    assert (record.class_name, record.state) == ("torch.nn.modules.activation.SiLU", {"a": 1})
