"""Reading pickle streams of other projects as data: nothing that is in a file is ever run or imported.

A pickle is a program whose dangerous instruction is "call what has this name". Here an interpreter of this module's own
follows it. A name stands for a row of `ADMITTED`, a function of this module for tensors, containers, numbers or NumPy
scalars and arrays, which a stream may call and nothing else; modules of networks, as NVIDIA's snapshots hold them,
become inert `Record`s. Any other name ends the reading with that name. Python's own reader would set attributes of what
it made, and take memory for whatever number a stream claims.
"""

import dataclasses
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Iterator
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
    "UntypedStorage": np.dtype("u1"),
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
PLAIN_DTYPE = re.compile(r"[<>|=]?[biufcSU]\d{1,9}")  # NumPy's name of a type without Python objects
MOST_PARTS = 10**6  # of the object in a file; a checkpoint of 1000 layers has some 10⁵
SLACK = 1000
KEYS = (str, bytes, int, float, bool, type(None))


class NotAdmitted(Exception):
    """The name of what a pickle asked for."""


@dataclasses.dataclass
class Record:
    """An object of a class that is not known here: its class's name and what was stored in it, as data.

    init_args, init_kwargs: the constructor's arguments, where NVIDIA's persistent classes recorded them.
    """

    class_name: str
    state: Any = None

    @property
    def init_args(self) -> tuple[Any, ...]:
        return tuple(self.state.get("_init_args", ()))

    @property
    def init_kwargs(self) -> dict[str, Any]:
        return dict(self.state.get("_init_kwargs", {}))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Memory that tensors are views of, in one axis. values: None while it is not read; its tensors are empty then."""

    values: np.ndarray | None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Name:
    """What a name in a stream stands for. make: what calling it gives; None where it is not to be called.

    dtype: of the elements, where it is a type of storage.
    """

    name: str
    make: Callable[..., Any] | None = None
    dtype: np.dtype | None = None


def read_pickle(
    stream: Any, storage: Callable[[np.dtype, str], Storage] | None = None, within: Callable[[bytes], Any] | None = None
) -> Any:
    """The next object of a stream; for `plain`.

    storage: of an element type and a key, as PyTorch's files have them. within: what is in a file within the file.
    Either is None where the file is to have none.

    Raises NotAdmitted with a name, and what a damaged stream may raise; `reading` turns both into one line.
    """
    return _Interpreter(storage, within).run(stream)


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


def plain(value: Any) -> Any:
    """What was read: arrays, records, containers and scalars alone. Parts that are used again are counted each time."""
    count = 0

    def of(value: Any) -> Any:
        nonlocal count
        count += 1
        if count > MOST_PARTS:
            raise pickle.UnpicklingError(f"an object of more than {MOST_PARTS} parts")
        if isinstance(value, dict):
            return {key: of(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(of(each) for each in value)
        if isinstance(value, Record):
            return Record(value.class_name, of(value.state))
        if isinstance(value, _Tensor | _Array):
            return value.array
        return value.name if isinstance(value, Name) else value

    return of(value)


# --- the interpreter ------------------------------------------------------------------------------------------------

# Instructions by their names in `pickletools`: those that push what stands behind them, the memo's, and those that mean
# nothing here. The tables of others follow their functions.
VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
GET = ("GET", "BINGET", "LONG_BINGET")
PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
IGNORED = ("PROTO", "FRAME", "STOP")
Operations = dict[str, tuple[int, Callable[..., Any]]]


class _Interpreter:
    """A pickle's stack, memo and marks. There is nothing else that a stream reaches or changes."""

    def __init__(
        self, storage: Callable[[np.dtype, str], Storage] | None, within: Callable[[bytes], Any] | None
    ) -> None:
        self.storage, self.within = storage, within
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.marks: list[int] = []
        self.handled = 0  # how much was given to functions, which is to be no more than what was read
        calls: Operations = {"REDUCE": (2, self.made), "NEWOBJ": (2, self.made), "BUILD": (2, self.built)}
        self.last: Operations = {**LAST, **calls, "BINPERSID": (1, self.stored)}

    def run(self, stream: Any) -> Any:
        instructions: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
        for instruction, argument, position in instructions:
            name = instruction.name
            if name in VALUES:
                self.stack.append(argument)
            elif name in GET:
                self.stack.append(self.memo[argument])
            elif name in PUT:
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
            elif name == "GLOBAL":
                self.stack.append(_admitted(*argument.split(" ", 1)))
            elif name == "MARK":
                self.marks.append(len(self.stack))
            elif name == "POP_MARK":
                self.marked()
            elif name == "POP":
                self.taken(1)
            elif name not in IGNORED:
                self.stack.append(self.combined(name))
            if self.handled > position + SLACK:
                raise pickle.UnpicklingError("parts that are used again and again")
        return self.stack.pop()

    def combined(self, name: str) -> Any:
        """What an instruction makes of values that it takes off the stack."""
        if name in self.last:
            count, make = self.last[name]
            return make(*self.taken(count))
        if name in MARKED:
            return MARKED[name](*self.marked())
        if name in ONTO:
            values = self.marked()
            return ONTO[name](*self.taken(1), *values)
        raise pickle.UnpicklingError(f"the instruction {name}")

    def taken(self, count: int) -> list[Any]:
        """The last of the stack, taken off it."""
        if len(self.stack) < count:
            raise pickle.UnpicklingError("an empty stack")
        place = len(self.stack) - count
        values = self.stack[place:]
        del self.stack[place:]
        return values

    def marked(self) -> list[Any]:
        """What stands above the last mark, taken off with it."""
        place = self.marks.pop()
        values = self.stack[place:]
        del self.stack[place:]
        return values

    def made(self, function: Any, arguments: Any) -> Any:
        """What a name gives that is called."""
        if not isinstance(function, Name) or (function.make is None and function.name != WITHIN):
            raise pickle.UnpicklingError("a call of what is no function")
        for each in _of(tuple, arguments):
            self.count(each)
        if function.make is not None:
            return function.make(*arguments)
        if self.within is None:
            raise pickle.UnpicklingError("a file within a file within a file")
        return self.within(_of(bytes, arguments[0]))

    def built(self, target: Any, state: Any) -> Any:
        """What was made, given its state. Attributes of a dict, such as a state dict's `_metadata`, are dropped."""
        self.count(state)
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, _Dtype):
            target.set_order(state)
        elif isinstance(target, _Array):
            target.set(state)
        elif isinstance(target, Name):
            raise pickle.UnpicklingError("a function that is given a state")
        else:
            _of(dict, target)
        return target

    def count(self, value: Any) -> None:
        """Notes what is given to a function."""
        if isinstance(value, str | bytes | list | tuple | dict):
            self.handled += len(value)

    def stored(self, identity: Any) -> Storage:
        """The storage of a persistent id: ("storage", type, key, ...)."""
        _of(tuple, identity)
        fits = len(identity) >= 3 and identity[0] == "storage" and isinstance(identity[1], Name)
        if self.storage is None or not fits or identity[1].dtype is None:
            raise pickle.UnpicklingError("a persistent id that is no storage")
        return self.storage(identity[1].dtype, _of(str, identity[2]))


def _of(kind: type, value: Any) -> Any:
    """The value. Raises UnpicklingError where it is not of the kind."""
    if not isinstance(value, kind):
        raise pickle.UnpicklingError(f"a {type(value).__name__.lstrip('_')} that should be a {kind.__name__}")
    return value


def _keys(values: Iterable[Any]) -> list[Any]:
    """The values. Raises UnpicklingError unless they are scalars: a tuple can take for ever to be hashed."""
    kept = list(values)
    if not all(isinstance(each, KEYS) for each in kept):
        raise pickle.UnpicklingError("a key that is no scalar")
    return kept


def _listed(target: Any, *values: Any) -> Any:
    _of(list, target).extend(values)
    return target


def _filled(target: Any, *pairs: Any) -> Any:
    """The dict with key, value, key, value … put in."""
    _of(dict, target).update(zip(_keys(pairs[::2]), pairs[1::2], strict=True))
    return target


def _joined(target: Any, *values: Any) -> Any:
    _of(set, target).update(_keys(values))
    return target


def _admitted(module: Any, name: Any) -> Name:
    """What a name stands for. Raises NotAdmitted where it is no row of `ADMITTED`, type or module of PyTorch."""
    module = {"__builtin__": "builtins"}.get(_of(str, module), module).replace("numpy._core", "numpy.core")
    full = f"{module}.{_of(str, name)}"
    if module in ("torch", "torch.storage") and name in STORAGES:
        return Name(full, dtype=STORAGES[name])
    if (module == "torch" and name in DTYPES) or full == WITHIN:
        return Name(full)
    if full in ADMITTED:
        return Name(full, ADMITTED[full])
    if module.startswith("torch.nn.modules.") and name.isidentifier():
        return Name(full, lambda *_: Record(full, {}))
    raise NotAdmitted(full)


# What is made of as many of the last values, of the values above the last mark, and of one and those above a mark.
LAST: Operations = {
    "NONE": (0, lambda: None),
    "NEWTRUE": (0, lambda: True),
    "NEWFALSE": (0, lambda: False),
    "EMPTY_LIST": (0, list),
    "EMPTY_TUPLE": (0, tuple),
    "EMPTY_DICT": (0, dict),
    "EMPTY_SET": (0, set),
    "TUPLE1": (1, lambda *values: values),
    "TUPLE2": (2, lambda *values: values),
    "TUPLE3": (3, lambda *values: values),
    "APPEND": (2, _listed),
    "SETITEM": (3, _filled),
    "STACK_GLOBAL": (2, _admitted),
}
MARKED: dict[str, Callable[..., Any]] = {
    "TUPLE": lambda *values: values,
    "LIST": lambda *values: list(values),
    "DICT": lambda *pairs: _filled({}, *pairs),
    "FROZENSET": lambda *values: frozenset(_keys(values)),
}
ONTO = {"APPENDS": _listed, "SETITEMS": _filled, "ADDITEMS": _joined}


# --- what the names stand for ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    array: np.ndarray


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """The view that a tensor is of its storage. One that is larger, or reaches beyond it, is refused."""
    values = _of(Storage, storage).values
    if values is None:
        return _Tensor(np.zeros(0))
    offset, size, stride = int(offset), tuple(map(int, size)), tuple(map(int, stride))
    inside = len(size) == len(stride) and offset >= 0 and min((*size, *stride), default=0) >= 0
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=False))
    if not inside or math.prod(size) > values.size or (0 not in size and last >= values.size):
        raise pickle.UnpicklingError(f"a tensor of shape {size} beyond its storage")
    if 0 in size:
        return _Tensor(np.zeros(size, values.dtype))
    strides = [step * values.itemsize for step in stride]
    return _Tensor(np.lib.stride_tricks.as_strided(values[offset:], size, strides, writeable=False))


class _Dtype:
    """A NumPy dtype: made by its name, then told its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        if not PLAIN_DTYPE.fullmatch(_of(str, name)):
            raise NotAdmitted(f"numpy.dtype({name[:20]!r})")
        self.dtype = np.dtype(name)

    def set_order(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _raw(data: Any) -> bytes:
    """Bytes, which a stream of Python 2 holds as text."""
    return data.encode("latin1") if isinstance(data, str) else _of(bytes, data)


def _scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(_raw(data), _of(_Dtype, dtype).dtype, 1)[0]


class _Array:
    """A NumPy array: made empty, then given its state."""

    __slots__ = ("array",)

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def set(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        flat = np.frombuffer(_raw(data), _of(_Dtype, dtype).dtype)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _persistent(meta: Any) -> Record:
    """An object of NVIDIA's `persistence`: its class's source is in the file, and is not looked at."""
    return Record(_of(str, meta["class_name"]), meta["state"])


WITHIN = "torch.storage._load_from_bytes"
ADMITTED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): _filled({}, *(each for pair in pairs for each in pair)),
    "builtins.set": lambda values=(): set(_keys(values)),
    "builtins.frozenset": lambda values=(): frozenset(_keys(values)),
    "builtins.complex": complex,
    "_codecs.encode": lambda text, encoding="latin1": _of(str, text).encode("latin1"),
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _Array,
    "torch.Size": lambda sizes=(): _of(tuple, sizes),
    "torch.device": lambda kind, *_: _of(str, kind),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": lambda *_: {},
}
