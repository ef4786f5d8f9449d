"""Where parameters lie on a mesh, by shapes alone; training on real devices is in multi_device/."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from score_sde.distributed.mesh import MeshSettings, batch_shards, check_batch_size
from score_sde.distributed.sharding import SMALLEST, Layout, parts, place
from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network


def mesh(slices: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    return AbstractMesh((slices, data, fsdp, tensor), ("slice", "data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((3, 3, 128, 256), (None, None, "in", "out"), (None, None, None, "fsdp")),  # the longest axis
        ((3, 3, 256, 129), (None, None, "in", "out"), (None, None, "fsdp", None)),  # that it divides
        ((512, 2048), ("in", "mlp"), ("fsdp", "tensor")),
        ((2048, 512), ("mlp", "out"), ("tensor", "fsdp")),
        ((2048,), ("mlp",), ("tensor",)),
        ((512,), ("channels",), (None,)),  # small
        ((128, 127), ("in", "out"), (None, None)),  # small: 16256 values
        ((128, 128), ("in", "out"), ("fsdp", None)),
        ((), (), ()),
    ],
)
def test_place_follows_the_rules(shape, axes, expected):
    placed = place(mesh(data=2, fsdp=4, tensor=2), shape, axes)
    assert tuple(placed.spec) == expected
    assert not placed.unsplit


def test_what_cannot_be_split_is_named():
    layout = Layout(mesh(fsdp=256), {("a",): place(mesh(fsdp=256), (1152, 1152), ("in", "heads"))})
    assert layout.placed[("a",)].unsplit == ("fsdp",)
    [line] = layout.lines()
    assert line.startswith("mesh.fsdp=256 leaves 1 parameters, 100.0% of their values, whole on every device")
    assert "a is 1152×1152" in line
    assert "mesh.fsdp=128 would split all" in line
    assert not list(Layout(mesh(fsdp=128), {("a",): place(mesh(fsdp=128), (1152, 1152), ("in", "heads"))}).lines())


def test_whole_tiles_come_before_length():
    assert tuple(place(mesh(fsdp=16), (3, 3, 768, 1088), (None, None, "in", "out")).spec) == (None, None, "fsdp", None)
    assert tuple(place(mesh(fsdp=16), (3, 3, 576, 1152), (None, None, "in", "out")).spec) == (None, None, None, "fsdp")


def test_parts_that_are_no_whole_tiles_are_named():
    """EDM2's widths are multiples of 64: 448/16 = 28 rows are none, 448/8 = 56 rows are seven tiles."""
    kernel, matrix = ((3, 3, 448, 448), (None, None, "in", "out")), ((448, 448), ("in", "out"))
    of = lambda size: Layout(
        mesh(fsdp=size), {("a",): place(mesh(fsdp=size), *kernel), ("b",): place(mesh(fsdp=size), *matrix)}
    )
    [line] = of(16).untiled()
    assert line.startswith("mesh.fsdp=16 splits 1 kernels, 90.0% of all values, into parts that are no multiple of 8")
    assert line.endswith("mesh.fsdp=8 would split all into whole ones")
    assert not list(of(8).untiled())


def test_averages_and_moments_lie_where_their_parameters_do():
    both = mesh(fsdp=2, tensor=2)
    layout = Layout(both, {("network", "inner", "kernel"): place(both, (256, 512), ("in", "mlp"))})
    kernel = jax.ShapeDtypeStruct((256, 512), jnp.float32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    params = {"network": {"inner": {"kernel": kernel}}}
    shapes = {"ema": (params,), "optimiser": ({"mu": params, "count": count},), "step": count}
    # of the same path and another shape: not its moment
    shapes["factored"] = {"network": {"inner": {"kernel": jax.ShapeDtypeStruct((256,), jnp.float32)}}}
    found = {jax.tree_util.keystr(path): layout._spec(path, leaf) for path, leaf in jax.tree.leaves_with_path(shapes)}
    split = PartitionSpec("fsdp", "tensor")
    assert found["['ema'][0]['network']['inner']['kernel']"] == split
    assert found["['optimiser'][0]['mu']['network']['inner']['kernel']"] == split
    assert found["['optimiser'][0]['count']"] == found["['step']"] == PartitionSpec()
    assert found["['factored']['network']['inner']['kernel']"] == PartitionSpec()


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("dit", {"size": "XL", "classes": 1000}, (32, 32, 4)),
        ("edm2", {"channels": 448, "classes": 1000}, (64, 64, 4)),
        ("ncsnpp", {"channel_multipliers": (1, 1, 2, 2, 2, 2, 2)}, (256, 256, 3)),
    ],
)
def test_published_networks_are_split(name, settings, shape):
    """Over 64 devices less than 1/50 of the bytes is on each, besides what is small."""
    network = Network(NETWORKS[name](**settings), shape)
    layout = Layout.of(mesh(fsdp=64), network.parameters())
    small = sum(4 * math.prod(each.shape) for each in layout.placed.values() if math.prod(each.shape) < SMALLEST)
    split = 4 * network.size() - small
    assert layout.bytes_per_device() - small < split / 50
    assert all(each.spec for each in layout.placed.values() if parts(layout.mesh, each.spec) > 1)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"data": 0}, "data must be -1 (what is left) or at least 1, not 0"),
        ({"fsdp": -2}, "fsdp must be -1"),
        ({"data": -1, "fsdp": -1}, "only one of data, fsdp can be -1"),
        ({"tensor": -1, "slices": -1, "data": 1}, "only one of slices, tensor can be -1"),
    ],
)
def test_impossible_meshes_are_refused(settings, problem):
    with pytest.raises(UserError) as error:
        MeshSettings(**settings)
    assert problem in str(error.value)


def test_mesh_must_use_every_device():
    count = len(jax.devices())
    for settings in ({"data": 3 * count}, {"fsdp": 3 * count}, {"data": -1, "tensor": 2 * count}):
        with pytest.raises(UserError, match=rf"does not use the {count} device\(s\) there are"):
            MeshSettings(**settings).build()
    assert MeshSettings().build().shape == {"slice": 1, "data": count, "fsdp": 1, "tensor": 1}
    with pytest.raises(UserError, match=r"mesh.slices=2 parts neither"):
        MeshSettings(slices=2, data=1).build(jax.devices() * 2)


def test_batch_is_split_over_all_but_tensor():
    of = mesh(slices=2, data=3, fsdp=4, tensor=5)
    assert batch_shards(of) == 24
    check_batch_size(of, 48, "training.batch_size")
    with pytest.raises(UserError, match=r"training.batch_size=40 is not divisible by the 24 devices .* nearest is 48"):
        check_batch_size(of, 40, "training.batch_size")


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 2), (16, 1)])
def test_a_mesh_over_slices_has_whole_slices(tpus, fsdp, tensor):
    """An axis may extend along a part of a side of the chips' grid: 8 of 4×4."""
    mesh = MeshSettings(slices=2, fsdp=fsdp, tensor=tensor).build(tpus("v5e:4x4", 2))
    assert mesh.devices.shape == (2, 16 // fsdp // tensor, fsdp, tensor)
    for number, devices in enumerate(mesh.devices):
        assert {device.slice_index for device in devices.flat} == {number}
        assert len({tuple(device.coords) for device in devices.flat}) == 16


@pytest.mark.parametrize("settings", [{"slices": -1, "data": 8}, {"slices": 2}])
def test_one_slice_of_tpus_is_not_several(tpus, settings):
    """Even where its hosts could be parted evenly."""
    with pytest.raises(UserError, match=r"mesh.slices=2 is not the number of slices that the TPUs are in, 1"):
        MeshSettings(**settings).build(tpus("v5e:4x4"))
