"""The words after a verb: `--key value` for every field of its config, and for the fields of the rules it picks."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from hsae import config
from hsae.errors import UserError, choices

T = TypeVar("T")


def override(kind: type[T], default: T, args: list[str], verb: str, description: str | None = None) -> T:
    """Override a config's fields by `--key value`."""
    import tyro

    args = _switches(args, default)
    printed = io.StringIO()
    try:
        # tyro explains a mistake in a box on stderr; here a mistake is one line, so the box is read and condensed.
        with contextlib.redirect_stderr(printed):
            settings, unknown = tyro.cli(
                kind,
                default=default,
                args=args,
                prog=f"hsae {verb} [CONFIG.toml]",
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"hsae {verb}: {_condensed(printed.getvalue())}") from None
    if unknown:
        names = _flag_names(default)
        if not unknown[0].startswith("-"):
            raise UserError(f"hsae {verb}: {unknown[0]!r} belongs to no flag; give flags as --key value")
        raise UserError(f"hsae {verb}: no flag {unknown[0]}; {choices(unknown[0], names)}")
    config.check(settings, f"hsae {verb}")
    return settings


def _condensed(box: str) -> str:
    """The message inside a box of tyro's: its lines between two rules (hyphens where stdout is not UTF-8), in one."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        if set(text) <= set("─╰╯-"):
            if lines:
                break
            continue
        lines.append(text)
    said = re.sub(r"^Error parsing (?:[A-Z]\w*: )?", "", " ".join(lines)) or "the flags cannot be read"
    unset = r"no type matching \{None\}\|(\w+) could be instantiated from \[(.*)\]\.$"
    return re.sub(unset, r"\1 is wanted, not \2", said)


def _switches(args: list[str], default: Any) -> list[str]:
    """`--json true` as `--json`, and `--json false` as `--no-json`, which is how tyro spells them."""
    off = {flag: no for flag, no in _flag_pairs(default) if no}
    spelt: list[str] = []
    for arg in args:
        if spelt and spelt[-1] in off and arg.lower() in ("true", "false"):
            spelt[-1] = spelt[-1] if arg.lower() == "true" else off[spelt[-1]]
        else:
            spelt.append(arg)
    return spelt


def _flag_pairs(value: Any, prefix: str = "--") -> Iterator[tuple[str, str | None]]:
    """Every flag that a config's fields make, and for a switch the one that turns it off."""
    is_table = isinstance(value, Mapping)
    items = value.items() if is_table else ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    for name, inner in items:
        flag = name.replace("_", "-")
        if dataclasses.is_dataclass(inner) or isinstance(inner, Mapping):
            yield from _flag_pairs(inner, f"{prefix}{flag}.")
        else:
            yield f"{prefix}{flag}", f"{prefix}no-{flag}" if isinstance(inner, bool) else None


def _flag_names(value: Any) -> list[str]:
    return [flag for pair in _flag_pairs(value) for flag in pair if flag]


# The flags that decide which other flags there are: which setups, and their rules and variants.
_SELECTORS = {"encoder": "rule", "decoder": "rule", "sae": "kind", "revive": "kind"}
_SELECTS = re.compile(r"--(?:setup\.(?P<setup>[\w-]+)\.)?(?P<part>(?:en|de)coder(?:\.rule)?|(?:sae|revive)(?:\.kind)?)")


def choose_setups(table: dict[str, Any], args: list[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """Move `--setups`, `--setup` and the choice of rules and variants from the flags into the table of `where`."""
    from hsae.trainconfig import setups_of

    names, tables = setups_of(table, where)
    setups: dict[str, Any] = {name: dict(changes) for name, changes in tables.items()}
    chosen, left = [], []
    args = [part for arg in args for part in (arg.split("=", 1) if re.match(r"--[\w.-]+=", arg) else [arg])]
    i = 0
    while i < len(args):
        select = _SELECTS.fullmatch(args[i])
        if args[i] in ("--setups", "--setup"):
            names = []
            while i + 1 < len(args) and not args[i + 1].startswith("--"):
                names += [name for name in args[i + 1].split(",") if name]
                i += 1
            if not names:
                raise UserError("--setups needs a name; see hsae train --help")
        elif select:
            if i + 1 == len(args):
                raise UserError(f"{args[i]} needs a name")
            chosen.append((args[i], select["setup"], select["part"].split(".")[0], args[i + 1]))
            i += 1
        else:
            left.append(args[i])
        i += 1
    for flag, setup, part, value in chosen:
        if setup is not None and setup not in names:
            raise UserError(f"{flag}: setup {setup} is not trained; {choices(setup, names)}")
        for name in [setup] if setup else names:
            setups.setdefault(name, {})[part] = {_SELECTORS[part]: value} if value else ""
    return {
        **table,
        "setups": names,
        "setup": {n: t for n, t in setups.items() if n in names or n in tables},
    }, left


def choose_data(table: dict[str, Any], args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Move the kind of the data, on which other defaults depend, from the flags into the table.

    `--stream MODEL` stands for `--data stream --stream.model MODEL`, and any flag of a stream for a stream.
    """
    args = ["--stream.hooks" if arg == "--stream.hook" else arg for arg in args]
    if "--stream" in args:
        at = args.index("--stream")
        if at + 1 == len(args) or args[at + 1].startswith("--"):
            raise UserError("--stream needs a model: a Hub id, a folder, or bundled")
        args[at] = "--stream.model"
    if any(arg.startswith("--stream.") for arg in args):
        table = table | {"data": "stream"}
    if "--data" in args[:-1]:
        table = table | {"data": args[args.index("--data") + 1]}
    return table, args


def for_each_setup(args: list[str], setups: Mapping[str, Any]) -> list[str]:
    """Spell `--encoder.lr 1` out as `--setup.NAME.encoder.lr 1` for every setup that has such a field."""
    from hsae.setup import Setup

    heads = {field.name for field in dataclasses.fields(Setup)}
    spelt, i = [], 0
    while i < len(args):
        head = args[i].removeprefix("--").split(".")[0].replace("-", "_")
        if args[i].startswith("--") and head.removeprefix("no_") in heads:
            flag = args[i].removeprefix("--")
            having = [name for name, setup in setups.items() if f"--{flag}" in _flag_names(setup)]
            if not having:
                known = sorted({f for setup in setups.values() for f in _flag_names(setup)})
                raise UserError(f"hsae train: no setup has {args[i]}; {choices(args[i], known)}")
            values = []
            while i + 1 < len(args) and not args[i + 1].startswith("--"):
                values.append(args[i + 1])
                i += 1
            for name in having:
                spelt += [f"--setup.{name}.{flag}", *values]
        else:
            spelt.append(args[i])
        i += 1
    return spelt
