"""What is read of a compiled program, against programs whose collectives are known in closed form."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from score_sde.distributed import hlo, products
from score_sde.distributed.collectives import _axes, _groups, collectives
from score_sde.distributed.mesh import MeshSettings
from tests import program

ROWS, COLUMNS = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", ROWS),
        ("replica_groups={}, dimensions={0}", [list(range(8))]),
        ("replica_groups=[2,4]<=[8], to_apply=%add", ROWS),
        ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add", COLUMNS),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}", ROWS),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(0,2,1)) {'a'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("source_target_pairs={{0,1},{1,0}}, channel_id=1", [[0, 1], [1, 0]]),
    ],
)
def test_groups_in_every_form(written, groups):
    found = _groups(f"%x), channel_id=1, {written}", 8)
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups))


def test_groups_in_another_form_are_no_guess():
    with pytest.raises(ValueError, match="no known form"):
        _groups("%x), replica_groups=mesh['a'=8] {'a':(2)2}", 8)


def fake_mesh(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(devices=np.empty(shape), size=math.prod(shape), axis_names=("slice", "data", "fsdp"))


@pytest.mark.parametrize(
    ("groups", "axes"),
    [(ROWS, ("fsdp",)), (COLUMNS, ("data",)), ([[0, 5]], ("data", "fsdp")), ([[0, 1], [2, 3]], ("fsdp",))],
)
def test_axes_are_those_along_which_a_group_differs(groups, axes):
    assert _axes(groups, fake_mesh(1, 2, 4)) == axes


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        ("bf16[1056,4096]{1,0:T(8,128)(2,1)S(1)}", 2 * 1056 * 4096),
        ("f32[]", 4),
        ("pred[3]{0}", 3),
        ("f8e4m3fn[16]", 16),
        ("c64[5]", 40),
        ("(f32[2,3]{1,0}, u32[]{:S(2)}, s8[7]{0})", 24 + 4 + 7),
        ("token[]", 1),
    ],
)
def test_bytes_of_types(written, bytes_):
    assert hlo.size(written) == bytes_


def test_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


LOOP = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %by = s32[] constant(STEP)
  %next = s32[] add(%i, %by)
  %sum = f32[8] all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[8]) tuple(%next, %sum)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] LIMIT
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> (s32[], f32[8]) {
  %x.1 = f32[8] parameter(0)
  %first = s32[] constant(START)
  %in = (s32[], f32[8]) tuple(%first, %x.1)
  ROOT %loop = (s32[], f32[8]) while(%in), condition=%condition, body=%bodyKNOWN
}
"""


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_loops_run_as_often_as_their_counter_says(start, step):
    text = LOOP.replace("START", str(start)).replace("STEP", str(step)).replace("KNOWN", "")
    found = hlo.parse(text.replace("LIMIT", "constant(8)")).executions()
    assert found["body"] == len(range(start, 8, step))


def test_loops_run_as_often_as_xla_says_or_once():
    text = LOOP.replace("START", "0").replace("STEP", "1").replace("LIMIT", "parameter(1)")
    assert hlo.parse(text.replace("KNOWN", "")).executions()["body"] == 1
    assert hlo.parse(text.replace("KNOWN", "")).executions(unknown=5)["body"] == 5
    known = ', backend_config={"known_trip_count":{"n":"12"}}'
    (found,) = collectives(hlo.parse(text.replace("KNOWN", known)), fake_mesh(1, 2, 4))
    assert (found.kind, found.operands, found.runs) == ("all-reduce", 32, 12)
    assert found.sent == 12 * 32 * 2 * 7 / 8


SCATTER = """
%scatter (x: bf16[1000,64], y: bf16[64]) -> (bf16[256,64], bf16[16]) {
  %x = bf16[1000,64] parameter(0)
  %zero = bf16[] constant(0)
  %padded = bf16[1024,64] pad(%x, %zero), padding=0_24x0_0
  %y = bf16[64] parameter(1)
  %sums = (bf16[1024,64], bf16[64]) all-reduce(%padded, %y), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}
  %one = bf16[1024,64] get-tuple-element(%sums), index=0
  %place = u32[] partition-id()
  %own.1 = bf16[256,64] dynamic-slice(%one, %place, %place), dynamic_slice_sizes={256,64}
  %two = bf16[64] get-tuple-element(%sums), index=1
  %own.2 = bf16[16] OPERATION(%two, %place), dynamic_slice_sizes={16}
  ROOT %out = (bf16[256,64], bf16[16]) tuple(%own.1, %own.2)
}

ENTRY %main (x: bf16[1000,64], y: bf16[64]) -> (bf16[256,64], bf16[16]) {
  %x.1 = bf16[1000,64] parameter(0)
  %y.1 = bf16[64] parameter(1)
  ROOT %fusion = (bf16[256,64], bf16[16]) fusion(%x.1, %y.1), kind=kCustom, calls=%scatter
}
"""


@pytest.mark.parametrize(("operation", "kind"), [("dynamic-slice", "reduce-scatter"), ("negate", "all-reduce")])
def test_sums_of_which_each_device_keeps_its_part(operation, kind):
    """As a TPU's compiler writes several reduce-scatters in one."""
    (found,) = collectives(hlo.parse(SCATTER.replace("OPERATION", operation)), fake_mesh(1, 2, 4))
    assert (found.kind, found.axes, found.operands) == (kind, ("fsdp",), 2 * (1024 * 64 + 64))


# Each program over 8 CPU devices in a mesh of data 2, fsdp 4, and the bytes that a device sends.
CASES = {
    "psum": ("all-reduce", ["data"], 1, 4 * 64 * 2 * 1 / 2),
    "psum_both": ("all-reduce", ["data", "fsdp"], 1, 4 * 64 * 2 * 7 / 8),
    "all_gather": ("all-gather", ["fsdp"], 1, 4 * 64 * 3),
    "psum_scatter": ("reduce-scatter", ["fsdp"], 1, 4 * 64 * 3 / 4),
    "all_to_all": ("all-to-all", ["fsdp"], 1, 4 * 64 * 3 / 4),
    "ppermute": ("collective-permute", ["fsdp"], 1, 4 * 64),
    "scan": ("all-reduce", ["data"], 7, 7 * 4 * 64),
}
SCRIPT = """
import json
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from score_sde.distributed import hlo, products
from score_sde.distributed.collectives import collectives
from score_sde.distributed.mesh import MeshSettings

mesh = MeshSettings(data=2, fsdp=4).build()
programs = {
    "psum": lambda x: lax.psum(x, "data"),
    "psum_both": lambda x: lax.psum(x, ("data", "fsdp")),
    "all_gather": lambda x: lax.all_gather(x, "fsdp", tiled=True),
    "psum_scatter": lambda x: lax.psum_scatter(x, "fsdp", tiled=True),
    "all_to_all": lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True),
    "ppermute": lambda x: lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
    "scan": lambda x: lax.scan(lambda h, _: (jnp.sin(lax.psum(h, "data")), None), x, None, length=7)[0],
}
x = jnp.ones((8 * 64,))
for name, each in programs.items():
    part = P(("data", "fsdp"))
    mapped = jax.shard_map(each, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    text = jax.jit(mapped).lower(x).compile().as_text()
    rows = [(c.kind, c.axes, c.runs, c.sent) for c in collectives(hlo.parse(text), mesh)]
    print(json.dumps([name, rows]))
"""


@pytest.fixture(scope="module")
def on_eight_devices():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=program.environment(8),
        cwd=program.ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(line) for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_known_programs_on_eight_devices(name, on_eight_devices):
    kind, axes, count, sent = CASES[name]
    assert on_eight_devices[name] == [[kind, axes, count, sent]]


# Each program over 4 slices of 2×2 chips in a mesh of slice 4, data 2, fsdp 2, and what a chip sends over the network.
B = 2 * 4096 * 128
BETWEEN = {
    "psum": (lambda x: jax.lax.psum(x, "slice"), "all-reduce", B * 2 * 3 / 4),
    "psum_both": (lambda x: jax.lax.psum(x, ("slice", "data")), "all-reduce", B / 2 * 2 * 3 / 4),
    "all_gather": (lambda x: jax.lax.all_gather(x, "slice", tiled=True), "all-gather", B * 3),
    "psum_scatter": (lambda x: jax.lax.psum_scatter(x, "slice", tiled=True), "reduce-scatter", B * 3 / 4),
    "all_to_all": (lambda x: jax.lax.all_to_all(x, "slice", 0, 0, tiled=True), "all-to-all", B * 3 / 4),
    "all_to_all_both": (
        lambda x: jax.lax.all_to_all(x, ("slice", "data"), 0, 0, tiled=True),
        "all-to-all",
        B * 3 / 4,  # of eight parts, six
    ),
    "ppermute": (lambda x: jax.lax.ppermute(x, "slice", [(0, 1), (1, 0)]), "collective-permute", B),
    "scan": (
        lambda x: jax.lax.scan(lambda h, _: (jnp.sin(jax.lax.psum(h, "slice")), None), x, None, length=7)[0],
        "all-reduce",
        7 * B * 2 * 3 / 4,
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_slices_send_one_another(name, tpus):
    function, kind, sent = BETWEEN[name]
    mesh = MeshSettings(slices=4, fsdp=2).build(tpus("v5e:2x2", 4))
    part = P(("slice", "data", "fsdp"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    x = jax.ShapeDtypeStruct((16 * 4096, 128), jnp.bfloat16, sharding=NamedSharding(mesh, part))
    found = collectives(hlo.parse(jax.jit(mapped).lower(x).compile().as_text()), mesh)
    (between,) = [each for each in found if "slice" in each.axes]
    assert (between.kind, between.axes, between.sent, between.overlapped) == (kind, ("slice",), sent, False)
    within = sum(each.sent for each in found if each is not between)
    assert within == (2 * B / 2 if name == "psum_both" else 0)  # scattered, and gathered after it


SEND = """
ENTRY %main (x: f32[8]) -> token[] {
  %x = f32[8] parameter(0)
  %token = token[] after-all()
  %send = (f32[8], u32[], token[]) send(%x, %token), is_host_transfer=true, frontend_attributes={SAID}
  ROOT %done = token[] send-done(%send), channel_id=2, is_host_transfer=true
}
"""


def test_what_is_sent_to_the_host_alone_is_none():
    parse = lambda attribute: hlo.parse(SEND.replace("SAID", attribute))
    assert collectives(parse('_xla_host_transfer_rendezvous="callback"'), fake_mesh(2, 2, 2)) == []
    with pytest.raises(ValueError, match="no known form: GOSSIP"):
        collectives(parse('_xla_megascale_transfer_type="GOSSIP"'), fake_mesh(2, 2, 2))


WIDE, NARROW, SAMPLES = 4096, 1024, 1024


def layers(tpus, split):
    """The gradient step of two bfloat16 layers on a mesh of data 4, fsdp 4: the compiled program and its mesh."""
    names = ("data", "fsdp")
    mesh = Mesh(np.array(tpus("v5e:4x4")).reshape(4, 4), names)
    of = lambda shape, spec, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def step(weights, x):
        loss = lambda w: jnp.mean((jnp.tanh(x @ w[0].astype(x.dtype)) @ w[1].astype(x.dtype)).astype(jnp.float32) ** 2)
        return [w - g for w, g in zip(weights, jax.grad(loss)(weights), strict=True)]

    specs = [P("fsdp", None), P(None, "fsdp")] if split else [P(), P()]
    weights = [
        of(shape, spec, jnp.float32) for shape, spec in zip([(NARROW, WIDE), (WIDE, NARROW)], specs, strict=True)
    ]
    out = [each.sharding for each in weights]
    lowered = jax.jit(step, out_shardings=out).lower(weights, of((SAMPLES, NARROW), P(names), jnp.bfloat16))
    return hlo.parse(lowered.compile().as_text()), mesh


def sent(found, kind):
    return sum(each.sent for each in found if each.kind == kind)


PARAMETERS = 2 * 2 * WIDE * NARROW  # bytes in bfloat16


def test_data_parallelism_on_tpus(tpus):
    (found,) = collectives(*layers(tpus, split=False))
    assert (found.kind, found.axes, found.devices) == ("all-reduce", ("data", "fsdp"), 16)
    assert found.sent == 2 * PARAMETERS * 15 / 16


def test_split_parameters_on_tpus(tpus):
    """In all forms that a TPU's compiler gives them; what is gathered is kept for the backward pass, without remat."""
    compiled, mesh = layers(tpus, split=True)
    found = collectives(compiled, mesh)
    assert sent(found, "all-gather") == PARAMETERS * 3 / 4
    assert PARAMETERS * 3 / 4 <= sent(found, "reduce-scatter") < 1.05 * PARAMETERS * 3 / 4  # with what tiles pad
    assert sent(found, "all-reduce") == 2 * PARAMETERS / 4 * 3 / 4
    assert {each.axes for each in found if each.kind == "all-reduce"} == {("data",)}
    assert products.flops(compiled) == 5 * 2 * SAMPLES // 16 * WIDE * NARROW  # no gradient for x


def test_a_loop_over_layers_on_tpus(tpus):
    """A TPU's compiler writes no trip count."""
    mesh = Mesh(np.array(tpus("v5e:2x2")), ("fsdp",))
    of = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    run = lambda x, weights: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]
    lowered = jax.jit(run).lower(of((512, 1024), P("fsdp")), of((7, 1024, 1024), P(None, "fsdp")))
    compiled = hlo.parse(lowered.compile().as_text())
    assert sum(each.runs for each in collectives(compiled, mesh)) == 7
    assert products.flops(compiled) == 7 * products.flops(compiled, once=True) == 7 * 2 * 128 * 1024**2


def test_padding_of_a_convolution_counts_nothing():
    """3×3 on 8×8 with padding 1: (3·8 − 2)² of the pairs meet a value."""
    text = """
ENTRY %main (x: f32[2,8,8,5], k: f32[3,3,5,7]) -> f32[2,8,8,7] {
  %x = f32[2,8,8,5]{3,2,1,0} parameter(0)
  %k = f32[3,3,5,7]{3,2,1,0} parameter(1)
  ROOT %y = f32[2,8,8,7]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""
    assert products.flops(hlo.parse(text)) == 2 * 2 * 22**2 * 5 * 7
    strided = text.replace("pad=1_1x1_1", "pad=0_0x0_0 stride=2x2").replace("f32[2,8,8,7]", "f32[2,3,3,7]")
    assert products.flops(hlo.parse(strided)) == 2 * 2 * 9**2 * 5 * 7
    dilated = text.replace("pad=1_1x1_1", "pad=1_1x1_1 lhs_dilate=2x2").replace("f32[2,8,8,7]", "f32[2,15,15,7]")
    meets = sum((place + k - 1) % 2 == 0 and 0 <= (place + k - 1) // 2 < 8 for place in range(15) for k in range(3))
    assert products.flops(hlo.parse(dilated)) == 2 * 2 * meets**2 * 5 * 7
