"""TOML tables <-> frozen dataclasses, strictly: a mistake is one line that names the key, the file and the choices."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from hsae import registry
from hsae.errors import UserError, choices, one_line, shown

SECTIONS = (
    *("harvest", "train", "inspect", "browse", "serve", "interpret", "evaluate", "compare", "ablate", "steer"),
    *("verify", "repair", "export", "import", "push", "pull", "paper", "lab"),
)
"""sections of a config file: one for each verb; [lab] holds one for each experiment, such as [lab.surgery]"""

MOST_BYTES = 16 << 20
"""of a config file; what is larger, such as a device without an end, is none"""

T = TypeVar("T")


class Registered:
    """Base of the dataclasses that live in a registry folder. A table picks one by `selector` (`rule = "oja"`)."""

    package: typing.ClassVar[str]
    selector: typing.ClassVar[str]


def require(ok: bool, field: str, wanted: str, value: object) -> None:
    """For `__post_init__`: refuse a value out of range. The reader of the table adds where it stood."""
    if not ok:
        raise ValueError(f"{field} must be {wanted}, not {shown(value)}")


def check(value: Any, where: str, path: str = "") -> None:
    """Refuse what nothing here can be set to: a number that is not finite or needs over 64 bits, text that is no text.

    Args:
        value: settings, or a value of theirs.
        where: the file or the command, for the error line.
        path: the dotted place of the value in it.

    Raises:
        UserError: there is such a value.
    """
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            check(inner, where, f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key))
    elif wanted := _unfit(value):
        raise UserError(f"{where}: {path} must be {wanted}, not {shown(value)}")


def _unfit(value: Any) -> str:
    """What a number or a text should be instead; empty: it is fit."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of at most 64 bits"
    # The system hands over bytes that are not UTF-8 as halves of surrogate pairs.
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        return "Unicode text without NUL"
    return ""


def read_file(path: str | Path, section: str) -> dict[str, Any]:
    """One section of a config file, such as `[train]` or `[lab.surgery]`, as plain data.

    Raises:
        UserError: no such file, not TOML, or a top-level key that is no section.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UserError(f"{path}: over {MOST_BYTES >> 20} MiB, so not a config file")
        data = tomllib.loads(raw.decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, where a TOML config file is wanted") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so not a TOML config file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # TOMLDecodeError is one; so is what a number of thousands of digits raises
        raise UserError(f"{path}: not valid TOML: {one_line(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a config file") from None
    for key in data:
        if key not in SECTIONS:
            raise UserError(f"{path}: unknown section [{key}]; {choices(key, SECTIONS)}")
    table: Any = data
    for part in section.split("."):
        table = table.get(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{path}: {section} must be a table")
    return table


def build(kind: type[T], table: Mapping[str, Any], where: str, path: str = "") -> T:
    """Fill a frozen dataclass from a table.

    Args:
        kind: the dataclass; or a `Registered` base, which the table's selector narrows.
        table: plain data from TOML or JSON. An int is taken where a float is meant.
        where: the file, for error lines.
        path: the dotted place of the table in that file.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range.
    """
    spelt = {key.replace("-", "_"): value for key, value in table.items()}
    if len(spelt) < len(table):
        twice = next(key for key in table if "-" in key)
        raise UserError(f"{where}: {path + '.' if path else ''}{twice} is set twice, with - and with _")
    table = spelt
    if issubclass(kind, Registered) and kind.selector in table:
        name = table.pop(kind.selector)
        kind = registry.find(kind.package, str(name), kind, where=f"{where}: {path}.{kind.selector}")
    if issubclass(kind, Registered) and inspect.isabstract(kind):
        known = ", ".join(registry.names(kind.package))
        raise UserError(f"{where}: {path} must name its {kind.selector} first; there is {known}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        dotted = f"{path}.{key}" if path else key
        if key not in fields:
            raise UserError(f"{where}: unknown key {dotted!r}; {choices(key, fields)}")
        values[key] = _convert(hints[key], value, where, dotted)
    try:
        return kind(**values)
    except TypeError as error:
        missing = [n for n, f in fields.items() if n not in values and _required(f)]
        if not missing:
            raise
        raise UserError(f"{where}: {path or kind.__name__} lacks {', '.join(missing)}") from error
    except ValueError as error:
        raise UserError(f"{where}: {path + '.' if path else ''}{error}") from None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str, path: str) -> Any:
    """One value to the type that its field declares, or an error line."""
    # A lambda: tests check the types of nested functions anew at every call, which is slow.
    wrong = lambda wanted: UserError(f"{where}: {path} must be {wanted}, not {shown(value)}")  # noqa: E731
    if wanted := _unfit(value):
        raise wrong(wanted)
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        # TOML has no null: an empty string stands for "not set" where that is allowed.
        if type(None) in args and (value is None or (value == "" and str not in inner)):
            return None
        return _convert(inner[0], value, where, path)
    if origin is Literal:
        if value not in args:
            raise wrong("one of " + ", ".join(map(repr, args)))
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(args[0], item, where, f"{path}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong("a table")
        return {key: _convert(args[1], item, where, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, Registered)):
        if isinstance(value, Mapping):
            return build(hint, value, where, path)  # pyright: ignore[reportArgumentType]
        if isinstance(hint, type) and issubclass(hint, Registered) and isinstance(value, str):
            return build(hint, {hint.selector: value}, where, path)
        raise wrong("a table")
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong("a number")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number")
        return value
    if hint is str:
        if not isinstance(value, str):
            raise wrong("a string")
        return value
    raise TypeError(f"{path}: no reader for the type {hint!r}")


def later(default: Any) -> Any:
    """The default of a field that came when there were runs already.

    `table` leaves the field out while it has that value, so that configs written before stay what they were, and with
    them the names of runs.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def table(config: Any) -> Any:
    """The plain data that `build` makes the same config from. Unset (None) fields are left out, and some defaults."""
    if isinstance(config, Mapping):
        return {key: table(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [table(value) for value in config]
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        head = {config.selector: registry.name_of(config)} if isinstance(config, Registered) else {}
        fields = {
            f.name: value
            for f in dataclasses.fields(config)
            if not ((value := getattr(config, f.name)) == f.default and f.metadata.get("later"))
        }
        return head | {key: table(value) for key, value in fields.items() if value is not None}
    return config


def fingerprint(data: Any, length: int = 8) -> str:
    """Hex digits that change when the data does: sha256 of its canonical JSON."""
    canonical = json.dumps(table(data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]
