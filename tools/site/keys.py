"""Settings as tables: every key of a frozen dataclass, its type, its default, and the line under it in the source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union

from hsae import registry
from hsae.config import Registered
from hsae.sharing.markdown import code, table

PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false"}
SEVERAL = {str: "text", int: "integers", float: "numbers"}


def summary(kind: type) -> str:
    """A class's docstring, without its list of attributes, as Markdown."""
    return inspect.cleandoc(kind.__doc__ or "").split("\n\nAttributes:")[0].strip()


def meanings(kind: type) -> dict[str, str]:
    """Field -> the string under it in the source, of the class and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            told = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(told, str):
                found[field.target.id] = " ".join(told.split())
    return found


def type_words(hint: Any) -> str:
    """A field's type in words, as Markdown."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = " or ".join(type_words(arg) for arg in args if arg is not type(None))
        return f"{inner}, or unset"
    if origin is Literal:
        return "one of " + ", ".join(code(str(arg)) for arg in args)
    if origin is tuple:
        return f"list of {SEVERAL.get(args[0], '') or type_words(args[0])}"
    if origin is dict:
        return "tables by name"
    if isinstance(hint, type) and issubclass(hint, Registered):
        return f"one of {code(hint.package)}, by {code(hint.selector)}"
    if dataclasses.is_dataclass(hint):
        return "table"
    return code(str(hint))


def default_words(value: Any) -> str:
    """A default as TOML would say it, as Markdown; a dash for what is told in a table of its own."""
    if value is None:
        return "unset"
    if isinstance(value, Registered):
        return code(registry.name_of(value))
    if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
        return "see below"
    if isinstance(value, tuple):
        return ", ".join(code(json.dumps(item)) for item in value) or code("[]")
    return code(json.dumps(value))


def rows(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every field that a user can set.

    Raises:
        ValueError: a field has no meaning under it.
    """
    told, hints = meanings(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        if field.name not in told:
            raise ValueError(f"{kind.__module__}.{kind.__name__}.{field.name}: no line under it says what it means")
        if field.default is not dataclasses.MISSING:
            default = default_words(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = default_words(field.default_factory())
        else:
            default = "needed"
        yield field.name, type_words(hints[field.name]), default, told[field.name]


def prose(text: str) -> str:
    """A docstring's line inside a cell: its code stays code, its bars and angle brackets are text."""
    parts = text.split("`")
    cells = [code(part) if i % 2 else _plain(part) for i, part in enumerate(parts)]
    return "".join(cells)


def _plain(text: str) -> str:
    for sign in "\\*_[]|":
        text = text.replace(sign, "\\" + sign)
    return text.replace("<", "&lt;")


def key_table(kind: type, prefix: str = "") -> str:
    """The keys of a class; empty where it has none."""
    found = [[code(prefix + key), type_, default, prose(meaning)] for key, type_, default, meaning in rows(kind)]
    return table(["key", "type", "default", "what it is"], found) if found else ""
