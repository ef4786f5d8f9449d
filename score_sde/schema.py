"""Plain data to settings: a frozen dataclass's annotations and `__post_init__` are the schema of its section.

A problem is collected as one phrase, so that all of them can be named at once.
"""

import ast
import dataclasses
import types
import typing
from typing import Any, TypeVar

from score_sde.errors import UserError, closest

T = TypeVar("T")
LARGEST = 3.4e38  # about the largest float32, the precision in which floats are used
_NAMES = {int: "an integer", float: "a number that float32 holds", str: "a string", bool: "True or False"}


class Text(str):
    """A value typed on the command line, still to be read as the type that its key has."""


def fields_of(cls: type) -> dict[str, Any]:
    """The settings of a dataclass: name to annotation, without fields whose metadata say that they are no setting."""
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.metadata.get("setting", True)]
    return {field.name: hints[field.name] for field in fields}


def read(cls: type, values: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """`values` checked and converted to the types of `cls`; unknown keys and wrong types are added to `problems`."""
    hints = fields_of(cls)
    result = {}
    for key, value in values.items():
        if key not in hints:
            problems.append(f"unknown key {where}.{key} ({closest(key, hints)})")
            continue
        try:
            result[key] = convert(value, hints[key])
        except UserError as error:
            problems.append(f"{where}.{key}: {error}")
    return result


def build(cls: type[T], values: dict[str, Any], where: str, problems: list[str]) -> T | None:
    """An instance of `cls`, or None with the reason added to `problems`."""
    before = len(problems)
    converted = read(cls, values, where, problems)
    try:
        built = cls(**converted)  # also after a problem, so that values out of range are named with it
    except UserError as error:
        problems.append(f"{where}: {error}")
    return built if len(problems) == before else None


def convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; text from the command line is read as Python would read a literal of it.

    Raises UserError where it is not one.
    """
    if typing.get_origin(hint) is tuple:
        return _tuple(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is types.UnionType:  # what a config can hold comes first
        return convert(value, typing.get_args(hint)[0])
    if hasattr(hint, "parse"):  # a type of its own that is written as text: Duration, Formula
        return value if isinstance(value, hint) else hint.parse(value)
    if hint is str and isinstance(value, str):
        return str(value)
    literal = _literal(value) if isinstance(value, Text) else value
    if hint in (bool, int) and type(literal) is hint:
        return literal
    if hint is float and isinstance(literal, int | float) and not isinstance(literal, bool) and _in_float32(literal):
        return float(literal)
    raise UserError(f"must be {_NAMES[hint]}, not {value if isinstance(value, Text) else repr(value)}")


def plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as data that JSON holds."""
    return {name: _plain(getattr(settings, name)) for name in fields_of(type(settings))}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if hasattr(value, "parse") else value


def _tuple(value: Any, entry: Any) -> tuple[Any, ...]:
    if isinstance(value, Text):
        parts = value.strip("()[] ").split(",")
        value = [Text(part.strip().strip("'\"")) for part in parts if part.strip()]
    if not isinstance(value, list | tuple):
        value = [value]
    return tuple(convert(part, entry) for part in value)


def _in_float32(number: int | float) -> bool:
    return -LARGEST < number < LARGEST


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it raises for bad text
        return text
