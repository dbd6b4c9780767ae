"""Command lines and config files as nobody means them, made from the settings' own dataclasses; what comes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import sys
import types
import typing
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union
from unittest import mock

import tomli_w
from hypothesis import strategies as st

from hsae import cli, registry
from hsae.config import SECTIONS, Registered
from hsae.setup import stock
from hsae.verbs import LAB, VERBS

KINDS = {
    "harvest": ("hsae.harvesting", "HarvestConfig", "harvest"),
    "train": ("hsae.trainconfig", "TrainConfig", ""),
    "evaluate": ("hsae.evaluate", "EvaluateConfig", "evaluate"),
    **{name: (verb.home, verb.config, verb.function) for name, verb in VERBS.items()},
    **{f"lab {name}": (verb.home, verb.config, verb.function) for name, verb in LAB.items()},
}
"""verb -> module, class of the settings, function"""

HUGE = "9" * 5000
LONG = "a" * 100_000
# What no setting is meant to be. As words of a command line; TOML gets them as strings, and those of VALUES.
WORDS = (
    *("", " ", "-", "--", "-1", "--help=", "nan", "NaN", "inf", "-inf", "-0.0", "1e999", "1e-999", "1_000", "0x10"),
    *("None", "null", "true", "[]", "{}", "%s", "{x}", "[red]", "[/]", "a,b", ",", "=", "a=b", "'", '"', "\\", "\\n"),
    *("..", ".", "/", "../../x", "a/b/c", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "no/fifo", "C:\\x"),
    *(
        "ü☃𝔘",
        "e\u0301",
        "\u202eabc",
        "\u2028",
        "\x1b[31mred\x1b[0m",
        "\x9b31m",
        "a\r\nhsae: b",
        "\x07",
        "\udcff",
        "\ufeff",
    ),
    *(HUGE, "-" + HUGE, LONG, str(2**63), str(10**30), "0", "-9223372036854775809", "3.7", "1e3", "0.1"),
)
VALUES = (
    *(float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, 1e308, 0, -1, 2**63, -(2**63) - 1, 10**30),
    *(True, False, [], {}, [[]], [[1], "x"], {"a": {"b": {}}}, [{}], ["a", "a"], {"": 0}),
)
ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202e\r[red]x[/][/y]"
"""what sets a terminal's title, colours it, clears it, turns the line around; and what rich takes for markup"""
DEEP = 100_000
"""levels of a table that no reader has the stack for"""
# Sizes that are fine as settings and fill any machine: only where nothing is computed.
LARGE = (2**31, 2**53, 2**63 - 1)


@dataclass(frozen=True)
class Leaf:
    """A key of a verb's settings: its dotted name and its type."""

    key: str
    hint: Any


@dataclass(frozen=True)
class Line:
    """A command line and the config file that it may name."""

    args: tuple[str, ...]
    config: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a line: an exit code, or "built" where the work itself was left out; and what was printed."""

    code: int | str
    out: str
    err: str


def leaves(kind: type, prefix: str = "") -> Iterator[Leaf]:
    """Every key that settings can have, those of every rule, variant and revival included."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner = [a for a in typing.get_args(hint) if a is not type(None)] if _is_union(hint) else [hint]
        if typing.get_origin(hint) is dict:
            yield Leaf(f"{prefix}{field.name}", dict)
            for name in (*stock(), "mine"):
                yield Leaf(f"{prefix}{field.name}.{name}", dict)
                yield from leaves(typing.get_args(hint)[1], f"{prefix}{field.name}.{name}.")
        elif isinstance(inner[0], type) and issubclass(inner[0], Registered):
            base = inner[0]
            names = registry.names(base.package)
            yield Leaf(f"{prefix}{field.name}", Literal[tuple(names)])
            yield Leaf(f"{prefix}{field.name}.{base.selector}", Literal[tuple(names)])
            for name in names:
                yield from leaves(registry.find(base.package, name, base), f"{prefix}{field.name}.")
        elif dataclasses.is_dataclass(inner[0]):
            yield Leaf(f"{prefix}{field.name}", dict)
            yield from leaves(inner[0], f"{prefix}{field.name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield Leaf(f"{prefix}{field.name}", hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)


def keys_of(verb: str) -> tuple[Leaf, ...]:
    """All keys of a verb; of train's setups also by the short flags that reach every one."""
    home, kind, _ = KINDS[verb]
    found = list(leaves(getattr(importlib.import_module(home), kind)))
    if verb == "train":
        short = f"setup.{stock()[0]}."
        found += [Leaf(leaf.key.removeprefix(short), leaf.hint) for leaf in found if leaf.key.startswith(short)]
    return tuple(found)


NAMED = {
    "run": ("made", "cache/runs/made", "gone", ""),
    "runs": ("made", "gone"),
    "store": ("shared", "cache/activations/shared", "gone"),
    "on": ("shared", "gone", ""),
    "hook": ("blocks.1.hook_resid_pre", "blocks.0.hook_resid_pre", ""),
    "hooks": ("blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out"),
    "setups": (*stock(), "mine"),
    "setup": ("bp", "hebb-tied", ""),
    "latent": ("0", "3", "0,2-4", "99"),
    "model": ("model", "gone/", ""),
    "data": ("text.txt", "text.jsonl", "gone.txt"),
    "device": ("cpu", "auto", "tpu"),
    "folder": ("sae", "gone"),
    "to": ("saelens", "sparsify", "safetensors", "owner/name"),
    "out": ("out", "text.txt", "gone/deep/out"),
    "html": ("page.html", "text.txt/x.html"),
    "repository": ("owner/name", "name"),
    "explainer": ("local",),
    "tokenizer": ("", "model"),
}
"""what is there in the world of the tests, by the key's last part"""


def right(leaf: Leaf, tame: bool) -> st.SearchStrategy[Any]:
    """Values of the type that a key has; tame: small ones, so that what comes of them is quick."""
    hint, last = leaf.hint, leaf.key.rsplit(".", 1)[-1]
    if _is_union(hint):
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        return right(Leaf(leaf.key, inner), tame) | st.just("")
    origin = typing.get_origin(hint)
    if origin is tuple:
        return st.lists(right(Leaf(leaf.key, typing.get_args(hint)[0]), tame), max_size=3)
    if last in NAMED and hint is str:
        return st.sampled_from(NAMED[last])
    if origin is Literal:
        return st.sampled_from(typing.get_args(hint) if last != "explainer" else ("local",))
    if hint is dict:
        return st.just({})
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(0, 9) if tame else st.integers(0, 9) | st.sampled_from(LARGE)
    if hint is float:
        return st.sampled_from((0.0, 1e-6, 0.01, 0.5, 1.0, 2.0, 1e4))
    return st.text(st.characters(exclude_characters="/"), max_size=8)


def keys(verb: str) -> st.SearchStrategy[Leaf]:
    """A key of a verb; of the few at the top as often as of the many below."""
    return st.sampled_from([leaf for leaf in KEYS[verb] if "." not in leaf.key]) | st.sampled_from(KEYS[verb])


def value(leaf: Leaf, tame: bool) -> st.SearchStrategy[Any]:
    """Mostly a right value, else one that is of no use."""
    absurd = st.sampled_from((*WORDS, *VALUES)) | st.text(max_size=5)
    if tame:  # an absolute path would lead out of the tests' world, where something may be written
        absurd = absurd.filter(lambda word: not (isinstance(word, str) and (word.startswith("/") or "/" in word[1:])))
    return st.one_of(*[right(leaf, tame)] * (5 if tame else 2), absurd)


def word(thing: Any) -> str:
    """A value as a word of a command line, which never holds a NUL."""
    text = str(thing).lower() if isinstance(thing, bool) else str(thing)
    return text.replace("\0", "")


@st.composite
def flags(draw: st.DrawFn, verb: str, tame: bool) -> list[str]:
    """Words after a verb: flags of its settings and others, in both spellings, with and without values, some twice."""
    spelt: list[str] = []
    for leaf in draw(st.lists(keys(verb), max_size=3)):
        key = draw(st.sampled_from((leaf.key, leaf.key.replace("_", "-"))))
        if draw(st.integers(0, 19)) == 0:
            key = draw(
                st.sampled_from((key[:-1], key + "x", key.upper(), "no-" + key, key + ".", "." + key, "ü" + key))
            )
        thing = draw(value(leaf, tame))
        words = [word(part) for part in thing] if isinstance(thing, list) else [word(thing)]
        if isinstance(thing, bool) and draw(st.booleans()):
            spelt += [f"--{key}" if thing else f"--{'no-' if '.' not in key else ''}{key}"]
        elif draw(st.booleans()) and words:
            spelt += [f"--{key}={words[0]}", *words[1:]]
        else:
            spelt += [f"--{key}", *words]
        if draw(st.integers(0, 9)) == 0:
            spelt += [f"--{key}", *words]  # twice
        if draw(st.integers(0, 19)) == 0:
            spelt += [f"--{key}"]  # without its value
    if draw(st.integers(0, 9)) == 0:
        spelt.insert(draw(st.integers(0, len(spelt))), word(draw(st.sampled_from(WORDS))))
    return [part for part in spelt if not (tame and part.startswith("/"))]


@st.composite
def tables(draw: st.DrawFn, verb: str, tame: bool) -> dict[str, Any]:
    """A config file's plain data: the verb's section, sometimes others, unknown keys, tables where values are meant."""
    table: dict[str, Any] = {}
    for leaf in draw(st.lists(keys(verb), max_size=4)):
        parts, inner = leaf.key.split("."), table
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                break
        else:
            key = draw(st.sampled_from((parts[-1], parts[-1].replace("_", "-"))))
            inner[key] = draw(value(leaf, tame))
    if draw(st.integers(0, 9)) == 0:
        table[draw(st.text(max_size=5))] = draw(st.sampled_from(VALUES))
    data: Any = table
    for part in reversed(verb.split()):
        data = {part: data}
    if draw(st.integers(0, 9)) == 0:
        data[draw(st.sampled_from((*SECTIONS, "oops", "", "ü", LONG)))] = draw(st.sampled_from(VALUES))
    return data


@st.composite
def configs(draw: st.DrawFn, verb: str, tame: bool) -> bytes:
    """A config file, mostly whole, else damaged as editors, networks and people do it."""
    data = draw(tables(verb, tame))
    try:
        raw = tomli_w.dumps(data).encode("utf-8", "surrogatepass")
    except ValueError:  # a number of so many digits
        raw = f"[{verb.replace(' ', '.')}]\nseed = {HUGE}\n".encode()
    damage = draw(st.integers(0, 19))
    if damage == 0:
        raw = b"\xef\xbb\xbf" + raw
    elif damage == 1:
        raw = raw.replace(b"\n", b"\r\n")
    elif damage == 2:
        raw = raw + 'x = "ü"\n'.encode("latin-1")
    elif damage == 3:
        raw = raw[: draw(st.integers(0, len(raw)))]
    elif damage == 4:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.sampled_from((b"\0", b"\x1b[2J", b"[", b'"', b"'''", b"=", b"\xff", b"\r"))) + raw[at:]
    elif damage == 5:
        raw = raw + raw  # every key twice
    elif damage == 6:
        raw = raw + b"x = " + b"[" * 3000
    elif damage == 7:
        raw = draw(st.binary(max_size=40))
    return raw


@st.composite
def lines(draw: st.DrawFn, tame: bool = False, start: Callable[[str], list[str]] = lambda verb: []) -> Line:
    """A whole command line. `start`: words that stand before the flags of a verb, such as what keeps its work small."""
    # Half of all keys are of train, whose flags depend on each other.
    verb = draw(st.sampled_from((*KEYS, *["train"] * 4)))
    args, config = verb.split(), None
    if draw(st.integers(0, 49)) == 0:
        args = draw(st.sampled_from(([], ["--version"], ["lab"], ["lab", "x"], [verb[:-1]], [LONG], ["\x1b[2J"], [""])))
    which = draw(st.integers(0, 9))
    if which < 4:
        args, config = [*args, "my.toml"], draw(configs(verb, tame))
    elif which == 4:
        args = [
            *args,
            draw(st.sampled_from(("gone.toml", "cache", "/dev/null", "/dev/zero", "text.txt", "no/fifo", LONG))),
        ]
    return Line((*args, *start(verb), *draw(flags(verb, tame))), config)


KEYS = {verb: keys_of(verb) for verb in KINDS}


class Built(Exception):
    """The settings are made; here the work would begin."""


@contextlib.contextmanager
def unworked(verbs: typing.Iterable[str] = tuple(KINDS)) -> Iterator[None]:
    """In which verbs stop once their settings are made: the functions that do their work raise `Built`."""
    with contextlib.ExitStack() as stack:
        for verb in verbs:
            home, _, function = KINDS[verb]
            home, function = ("hsae.training", "train") if verb == "train" else (home, function)
            stack.enter_context(mock.patch(f"{home}.{function}", side_effect=Built))
        yield


def outcome(line: Line) -> Outcome:
    """Do what a line asks for, in the working folder, as the `hsae` command does. Whatever it raises comes through."""
    if line.config is not None:
        Path("my.toml").write_bytes(line.config)
    out, err = io.StringIO(), io.StringIO()
    code: int | str = 0
    try:
        with (
            mock.patch.object(sys, "argv", ["hsae", *line.args]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except Built:
        code = "built"
    finally:
        if line.config is not None:
            Path("my.toml").unlink()
    return Outcome(code, out.getvalue(), err.getvalue())


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    """Everything below folders: size and time of change."""
    found = {}
    for folder in folders:
        for place, within, files in os.walk(folder):
            for name in (*within, *files):
                path = Path(place, name)
                told = path.lstat()
                found[str(path)] = (0, 0) if path.is_dir() else (told.st_size, told.st_mtime_ns)
    return found


def complaint(done: Outcome) -> str:
    """What is wrong with an outcome; empty: it is as promised, a result, or one clear line and exit code 2."""
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t" for c in done.out + done.err):
        return "control characters reach the terminal"
    if done.code == 2:
        if not (done.err.startswith("hsae: ") and done.err.endswith("\n") and done.err.count("\n") == 1):
            return "the complaint is not one line"
        if len(done.err) > 1100:
            return "the complaint is not of sane length"
        return ""
    return "" if done.code in (0, 1, "built") else f"exit code {done.code}"


def do(line: str) -> Outcome:
    """A line is done as a user does it: a result, or one line on stderr."""
    done = outcome(Line(tuple(line.split())))
    assert not (wrong := complaint(done)), f"{wrong}: {line}\n{done.err[:2000]!r}\n{done.out[:2000]!r}"
    return done
