"""The command line. Each verb takes a config file and overrides; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from hsae.errors import UserError, choices

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

HELP = """\
usage: hsae VERB [CONFIG.toml] [--key value …]

  harvest   run a language model over text, keep a hook point's activations
  train     train sparse autoencoders on them, with any learning rule
  evaluate  splice them into the language model: what does it lose?
  inspect   look at a run, or at one latent: hsae inspect --latent 27
  paper     reproduce the Hebbian SAE paper on a store, with a report

hsae VERB --help lists the keys of a verb. A config file sets them in
[harvest], [train], [evaluate], [inspect] and [paper]; flags override it.
Stores and runs go to cache/ in the working folder, or to $HSAE_CACHE.
"""


def main() -> NoReturn:
    """Entry point of the `hsae` command. Exit codes: 0 done, 1 a setup diverged, 2 a mistake, 130 Ctrl-C."""
    _tune_process()
    try:
        code = run(sys.argv[1:])
    except UserError as error:
        print(f"hsae: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as stop:
        print(f"hsae: {str(stop) or 'stopped; the same command goes on from what is saved'}", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output (head, less) is gone: that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # no file of the user's: a fault of ours
            raise
        print(f"hsae: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _tune_process() -> None:
    """Settings that PyTorch and the C library read when they start. They change the speed, never a result."""
    # Huge pages for large tensors, on Linux.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep instead of spinning on cores that others could use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc gives large temporaries back to the system at once, and every step faults their pages in again: keep them.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def run(args: list[str]) -> int:
    """Do what the words after `hsae` ask for; the exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] in ("--version", "version"):
        import hsae

        print(f"hsae {hsae.__version__}")
        return 0
    verbs: dict[str, Callable[[list[str]], int]] = {
        "harvest": _harvest,
        "train": _train,
        "evaluate": _evaluate,
        "inspect": _inspect,
        "paper": _paper,
    }
    if args[0] not in verbs:
        raise UserError(f"no verb {args[0]!r}; {choices(args[0], verbs)}")
    return verbs[args[0]]([_hyphens(arg) for arg in args[1:]])


def _hyphens(arg: str) -> str:
    """`--batch_tokens=1` as `--batch-tokens=1`: both spellings are the same flag."""
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value if arg.startswith("--") else arg


def _harvest(args: list[str]) -> int:
    from hsae.harvesting import HarvestConfig, harvest

    where, table, flags = _config_file(args, "harvest")
    harvest(_flags(HarvestConfig, _build(HarvestConfig, table, where), flags, "harvest"), _console())
    return 0


def _train(args: list[str]) -> int:
    from hsae.inspect.terminal import run_table
    from hsae.progress import Training, say
    from hsae.trainconfig import TrainConfig
    from hsae.training import train

    where, table, flags = _config_file(args, "train")
    table, flags = _choose_setups(table, flags)
    if "--data" in flags[:-1]:
        table = table | {"data": flags[flags.index("--data") + 1]}
    base = TrainConfig.from_table(table, where)
    settings = _flags(TrainConfig, base, _for_each_setup(flags, base.setup), "train", _train_description())
    console = _console()
    result = train(settings, Training(console))
    console.print(run_table(result))
    say(console, f"next: hsae inspect --run {result.name}")
    return 1 if any(row.diverged for row in result.result.rows) else 0


def _train_description() -> str:
    """What `hsae train --help` says beside the flags: the names that a flag can take, and how far it reaches."""
    from hsae import registry
    from hsae.setup import stock

    return (
        "Train one or more setups, under one or more seeds, in one reading of a store.\n\n"
        f"setups: {', '.join(stock())}  (--setups NAME …)\n\n"
        f"rules: {', '.join(registry.names('hsae.rules'))}  (--encoder.rule NAME, --decoder.rule NAME)\n\n"
        f"variants: {', '.join(registry.names('hsae.sae'))}  (--sae.kind NAME)\n\n"
        f"revivals of dead latents: {', '.join(registry.names('hsae.revival'))}  (--revive.kind NAME)\n\n"
        "--encoder.lr 1e-3 sets the field in every setup that has it, --setup.bp.encoder.lr 1e-3 in one."
    )


def _evaluate(args: list[str]) -> int:
    from rich.console import Console

    from hsae.evaluate import EvaluateConfig, evaluate
    from hsae.inspect.losses import show

    where, table, flags = _config_file(args, "evaluate")
    settings = _flags(EvaluateConfig, _build(EvaluateConfig, table, where), flags, "evaluate")
    show(evaluate(settings, Console(stderr=True)), _console(), settings.json)
    return 0


def _inspect(args: list[str]) -> int:
    from hsae.inspect import InspectConfig, inspect

    where, table, flags = _config_file(args, "inspect")
    inspect(_flags(InspectConfig, _build(InspectConfig, table, where), flags, "inspect"), _console())
    return 0


def _paper(args: list[str]) -> int:
    from hsae.paper import PaperConfig, paper

    where, table, flags = _config_file(args, "paper")
    paper(_flags(PaperConfig, _build(PaperConfig, table, where), flags, "paper"), _console())
    return 0


def _console() -> Console:
    from rich.console import Console

    return Console()


def _build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    from hsae import config

    return config.build(kind, table, where)


def _config_file(args: list[str], section: str) -> tuple[str, dict[str, Any], list[str]]:
    """(where the settings come from, that file's section, the flags left over)."""
    if args and not args[0].startswith("-"):
        from hsae import config

        return args[0], config.read_file(args[0], section), args[1:]
    return "defaults", {}, args


def _flags(kind: type[T], default: T, args: list[str], verb: str, description: str | None = None) -> T:
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
    return settings


def _condensed(box: str) -> str:
    """The message inside a box of tyro's: its lines up to the first rule, in one."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        if set(text) <= set("─╰╯"):
            break
        lines.append(text)
    return re.sub(r"^Error parsing (?:[A-Z]\w*: )?", "", " ".join(lines)) or "the flags cannot be read"


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
_SELECTS = re.compile(r"--(?:setup\.(?P<setup>[\w-]+)\.)?(?P<part>encoder\.rule|decoder\.rule|sae\.kind|revive\.kind)")


def _choose_setups(table: dict[str, Any], args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Move `--setups`, `--setup` and the choice of rules and variants from the flags into the table."""
    setups: dict[str, Any] = {name: dict(changes) for name, changes in table.get("setup", {}).items()}
    names, chosen, left = table.get("setups"), [], []
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
            chosen.append((args[i], select["setup"], *select["part"].split("."), args[i + 1]))
            i += 1
        else:
            left.append(args[i])
        i += 1
    from hsae.trainconfig import PAPER_SETUPS

    names = list(names or PAPER_SETUPS)
    for flag, setup, part, selector, value in chosen:
        if setup is not None and setup not in names:
            raise UserError(f"{flag}: setup {setup} is not trained; {choices(setup, names)}")
        for name in [setup] if setup else names:
            setups.setdefault(name, {})[part] = {selector: value}
    return {
        **table,
        "setups": names,
        "setup": {n: t for n, t in setups.items() if n in names or n in table.get("setup", {})},
    }, left


def _for_each_setup(args: list[str], setups: Mapping[str, Any]) -> list[str]:
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
