"""Reading pickle streams of other projects as data: nothing that is in a file is ever run or imported.

A pickle is a program whose dangerous instruction is "call what has this name". Here every name is looked up in
`ADMITTED`, a table of this module's own functions for tensors, containers, numbers and NumPy scalars and arrays; module
trees, as NVIDIA's network snapshots hold them, become inert `Record`s. Any other name ends the reading with that name.
"""

import collections
import dataclasses
import io
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from score_sde.errors import UserError

# Storage types of PyTorch and their element types.
STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
DTYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    "bfloat16": ml_dtypes.bfloat16,
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "?",
}
PLAIN_KINDS = "biufcSUV?"  # of NumPy dtypes without Python objects


class NotAdmitted(Exception):
    """The name of what a pickle asked for."""


@dataclasses.dataclass
class Record:
    """An object of a class that is not known here: its class's name and what was stored in it, as data.

    init_args, init_kwargs: the constructor's arguments, where NVIDIA's persistent classes recorded them.
    """

    class_name: str
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def init_args(self) -> tuple[Any, ...]:
        return tuple(self.state.get("_init_args", ()))

    @property
    def init_kwargs(self) -> dict[str, Any]:
        return dict(self.state.get("_init_kwargs", {}))


@dataclasses.dataclass(frozen=True)
class Storage:
    """Memory that tensors are views of. values: None while it is not read yet; its tensors are empty then."""

    values: np.ndarray | None


def read_pickle(stream: io.BufferedIOBase | io.BytesIO, storage: Callable[[tuple], Storage] | None = None) -> Any:
    """The next object of a stream. storage: of a persistent id, as PyTorch's files have them.

    Raises NotAdmitted with a name, and what a damaged stream may raise; `reading` turns both into one line.
    """
    return _Reader(stream, storage).load()


def reading(path: Any, read: Callable[[], Any]) -> Any:
    """What `read` returns. Raises UserError with one line where the file is not admitted or damaged."""
    try:
        return read()
    except NotAdmitted as error:
        raise UserError(
            f"{path} asks for {error}, which is refused: only tensors, containers, numbers and NumPy scalars are read; "
            "nothing of it was run"
        ) from None
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} is damaged, or does not fit into memory") from None
    # Whatever a stream of wrong bytes can make the reader do; it runs no code of the file.
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is truncated, damaged or no checkpoint ({what})") from error


class _Reader(pickle.Unpickler):
    def __init__(self, stream: Any, storage: Callable[[tuple], Storage] | None) -> None:
        super().__init__(stream, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        if (module, name) in ADMITTED:
            found = ADMITTED[module, name]
            return found if isinstance(found, type | np.dtype) else _Sealed(found)
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return _record_class(f"{module}.{name}")
        raise NotAdmitted(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> Storage:
        if self._storage is None or not isinstance(identity, tuple) or identity[:1] != ("storage",):
            raise pickle.UnpicklingError("a persistent id that is no storage")
        return self._storage(identity)


class _Sealed:
    """A function that a stream may call and nothing else: an instruction of it that sets attributes is refused."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function that is given a state")


def _record_class(class_name: str) -> type:
    """A class that makes a `Record`, also where the stream builds its object without calling it."""
    return type("Record", (Record,), {"__new__": lambda cls, *_: _record(cls, class_name), "__init__": lambda *_: None})


def _record(cls: type[Record], class_name: str) -> Record:
    made: Record = object.__new__(cls)
    made.class_name, made.state = class_name, {}
    return made


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """A copy of the view that a tensor is of its storage; a view beyond it is refused."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if storage.values is None:
        return np.zeros(0)
    values, offset, size, stride = storage.values, int(offset), tuple(map(int, size)), tuple(map(int, stride))
    inside = len(size) == len(stride) and offset >= 0 and min((*size, *stride), default=0) >= 0
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=False))
    if not inside or (0 not in size and last >= len(values)):
        raise pickle.UnpicklingError(f"a tensor of shape {size} beyond its storage")
    if 0 in size:
        return np.zeros(size, values.dtype)
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides, writeable=False).copy()


def _plain_dtype(name: Any, *_: Any) -> "_Dtype":
    dtype = np.dtype(name)
    if dtype.kind not in PLAIN_KINDS or dtype.hasobject:
        raise NotAdmitted(f"numpy.dtype({name!r})")
    return _Dtype(dtype)


class _Dtype:
    """A dtype whose pickled state, its byte order, is applied without NumPy's own `__setstate__`."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


def _dtype_of(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("no dtype")
    return dtype.dtype


def _scalar(dtype: Any, data: Any = b"") -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, _dtype_of(dtype), 1)[0]


class _Array:
    """A NumPy array on its way: made empty, then given its state. `array` is what it was."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, _dtype_of(dtype))
        self.array = flat.reshape(shape, order="F" if fortran else "C").copy()


def _persistent(meta: Any) -> Record:
    """An object of NVIDIA's `persistence`: its class's source is in the file, and is not looked at."""
    return Record(str(meta["class_name"]), meta["state"])


def _storage_of_bytes(data: bytes) -> Any:
    from score_sde.pretrained.torch_files import read_torch  # the two need each other: a file within a file

    return read_torch(io.BytesIO(data))


class _EasyDict(dict):
    """A dict that its stream may fill by items or by state."""

    def __setstate__(self, state: Any) -> None:
        self.update(state)


ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
    ("_codecs", "encode"): lambda text, encoding="latin1": str(text).encode("latin1"),
    ("numpy", "dtype"): _plain_dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    ("torch.storage", "UntypedStorage"): STORAGES["ByteStorage"],
    ("torch.storage", "_load_from_bytes"): _storage_of_bytes,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _EasyDict,
}


def plain(value: Any) -> Any:
    """What was read, with arrays on their way as arrays."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, _Dtype):
        return value.dtype
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(each) for each in value)
    if isinstance(value, Record):
        return Record(value.class_name, plain(value.state))
    return value
