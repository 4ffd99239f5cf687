"""Configuration dataclasses and plain JSON: strict reading, writing, checks in words.

Knows no configuration in particular. What is read may be a stranger's: every name and type is
checked, and messages stay short and printable.
"""

import dataclasses
import json
import operator
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, SupportsIndex, TypeVar, cast, get_args, get_origin

from iwm.errors import InvalidConfigError, nearest, quoted

Json = dict[str, Any]
ConfigT = TypeVar("ConfigT")


def require(condition: bool, message: str) -> None:
    """Raise `InvalidConfigError(message)` unless `condition` holds."""
    if not condition:
        raise InvalidConfigError(message)


def require_count(name: str, value: object, least: int = 1) -> int:
    """A whole number, of whatever kind, as an `int`.

    Raises:
        InvalidConfigError: it is none, or not so large.
    """
    try:
        if "bool" in str(getattr(value, "dtype", type(value))):
            raise TypeError
        number = operator.index(cast(SupportsIndex, value))
    except TypeError as error:
        words = f"{name} is {quoted(repr(value))}; it must be a whole number, at least {least}."
        raise InvalidConfigError(words) from error
    require(number >= least, f"{name} is {value}; it must be at least {least}.")
    return number


def require_choice(name: str, value: str, choices: Any) -> None:
    """Raise `InvalidConfigError` unless `value` is one of a `Literal`'s."""
    known = get_args(choices)
    word = quoted(value)
    require(value in known, f'{name} is "{word}".{nearest(word, known)}')


def to_json(config: Any) -> str:
    """Any configuration dataclass as indented JSON, ending in a newline."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Build a configuration dataclass from plain JSON values, checking names and types strictly.

    Raises:
        InvalidConfigError: with the dotted path of the field at fault.
    """
    from pydantic import TypeAdapter, ValidationError

    check_names(cls, data)
    try:
        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # Ours: names the field already.
            raise InvalidConfigError(quoted(first["msg"].removeprefix("Value error, "), 400)) from error
        path = ".".join(str(part) for part in first["loc"]) or "the config"
        said = f"{quoted(path)} is {quoted(repr(first['input']))}: {quoted(first['msg'], 200)}"
        if first["type"] == "literal_error":  # Its message lists what is possible.
            guess = nearest(str(first["input"]), re.findall(r"'([^']*)'", first["msg"]))
            said += f".{guess}" if "Did you mean" in guess else "."
        raise InvalidConfigError(said) from error


def dotted(fields: Mapping[str, Any], prefix: str = "") -> Json:
    """Nested fields as one level of dotted names; an empty section stays a value."""
    names: Json = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            names |= dotted(value, f"{prefix}{key}.")
        else:
            names[prefix + key] = value
    return names


def check_names(cls: type[Any], data: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `InvalidConfigError` for the first key of `data` that `cls` does not have."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in known:
            names = [prefix + name for name in known]
            name = quoted(prefix + key)
            raise InvalidConfigError(f'No field "{name}".{quoted(nearest(name, names), 300)}')
        _check_names_inside(known[key].type, value, prefix + key)


def _check_names_inside(kind: Any, value: Any, path: str) -> None:
    """Where a field holds a configuration, perhaps one, or some by name."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InvalidConfigError(f"{path} must hold fields, not {quoted(repr(value))}.")
        check_names(kind, value, f"{path}.")
    elif isinstance(kind, UnionType) and value is not None:
        for part in get_args(kind):
            if dataclasses.is_dataclass(part):
                _check_names_inside(part, value, path)
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        for key, item in value.items():
            _check_names_inside(get_args(kind)[1], item, f"{path}.{quoted(key, 40)}")
