"""The command line. Each verb takes a config file and overrides; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from hsae import interrupt
from hsae.errors import LONGEST, Elsewhere, Interrupted, UserError, choices, cut, one_line, visible
from hsae.flags import choose_data, choose_setups, for_each_setup, override
from hsae.verbs import HELP, LAB, LAB_HELP, VERBS, Verb

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# This process's number among those that torchrun started: all but the first are quiet.
RANK = int(os.environ.get("RANK", 0))


def main() -> NoReturn:
    """Entry point of the `hsae` command. Exit codes: 0 done, 1 diverged or damage found, 2 a mistake, 130 Ctrl-C."""
    try:
        try:
            interrupt.listen()
            _tune_process()
            code = run(sys.argv[1:])
        except BaseException as error:
            code = _failed(error)
        if code != 130:
            # All is done: Ctrl-C while the interpreter clears up would only end in a traceback. Twice, as it may come
            # in the first call itself.
            atexit.register(interrupt.dead)
            atexit.register(interrupt.dead)
            sys.exit(code)
    except KeyboardInterrupt as late:  # between the end and `deaf`
        code = _failed(late)
    # A thread that was left in compiled code can take the process with it when the interpreter clears up.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _failed(error: BaseException) -> int:
    """Say in one line what ended a verb; its exit code. What is a fault of ours is raised again."""
    interrupt.deaf()
    if interrupt.asked() or isinstance(error, KeyboardInterrupt):
        if RANK:
            time.sleep(1)
        else:
            told = isinstance(error, Interrupted)
            _complain(str(error) if told else "stopped; the same command goes on from what is saved")
        return 130
    if isinstance(error, UserError):
        if RANK and isinstance(error, Elsewhere):
            # Torchrun ends all processes when one ends: the one that knows more must come to say so.
            until = time.monotonic() + 10
            while time.monotonic() < until and not interrupt.asked():
                time.sleep(0.02)
        else:
            _complain(str(error))
        return 2
    if isinstance(error, BrokenPipeError):
        # The reader of our output (head, less) is gone: that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # An error of the disk that names no file of the user's is a fault of ours.
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        _complain(f"{error.filename or 'writing'}: {error.strerror}")
        return 2
    # PyTorch's have no class of their own, nor has a thread whose stack finds no room.
    room = isinstance(error, RuntimeError) and re.search("allocate|can't start new thread", str(error))
    if room or isinstance(error, MemoryError):
        _complain(f"out of memory ({one_line(error, 160)}); take smaller sizes")
        return 2
    raise error


def _complain(line: str) -> None:
    """One line on stderr, whatever is in it, with the number of the process where there are several."""
    print(f"hsae: {f'rank {RANK}: ' if RANK else ''}{cut(visible(line), LONGEST)}", file=sys.stderr)


def _tune_process() -> None:
    """Settings that PyTorch and the C library read when they start. They change the speed, never a result."""
    # Huge pages for large tensors, on Linux.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep instead of spinning on cores that others could use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc gives large temporaries back to the system at once, and every step faults their pages in again: keep them.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 8 << 20)  # M_MMAP_THRESHOLD
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
    own: dict[str, Callable[[list[str]], int]] = {"harvest": _harvest, "train": _train, "evaluate": _evaluate}
    own["lab"] = _lab
    name, rest = args[0], [_hyphens(arg) for arg in args[1:]]
    if name in own:
        return own[name](rest)
    if name not in VERBS:
        raise UserError(f"no verb {name!r}; {choices(name, {*VERBS, *own})}")
    return _do(name, VERBS[name], rest)


def _do(name: str, verb: Verb, args: list[str]) -> int:
    """A verb whose settings say everything."""
    words = []
    if verb.words:
        while args and not args[0].startswith("-") and not args[0].endswith(".toml"):
            words.append(args.pop(0))
    home = importlib.import_module(verb.home)
    kind = getattr(home, verb.config)
    where, table, flags = _config_file(args, name.replace(" ", "."))
    if words:
        several = isinstance(getattr(kind(), verb.words), tuple)
        if len(words) > 1 and not several:
            raise UserError(f"hsae {name}: {words[1]!r} belongs to no flag; give flags as --key value")
        table = {**table, verb.words: words if several else words[0]}
        where = f"hsae {name}" if where == "defaults" else where
    code = getattr(home, verb.function)(override(kind, _build(kind, table, where), flags, name), _console())
    return code if isinstance(code, int) else 0  # called from Python, some give what they made


def _lab(args: list[str]) -> int:
    """One of the lab's experiments."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(LAB_HELP, end="")
        return 0
    if args[0] not in LAB:
        raise UserError(f"hsae lab: no experiment {args[0]!r}; {choices(args[0], LAB)}")
    return _do(f"lab {args[0]}", LAB[args[0]], args[1:])


def _hyphens(arg: str) -> str:
    """`--batch_tokens=1` as `--batch-tokens=1`: both spellings are the same flag."""
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value if arg.startswith("--") else arg


def _harvest(args: list[str]) -> int:
    from hsae.harvesting import HarvestConfig, harvest

    where, table, flags = _config_file(args, "harvest")
    harvest(override(HarvestConfig, _build(HarvestConfig, table, where), flags, "harvest"), _console())
    return 0


def _train(args: list[str]) -> int:
    from hsae.inspect.terminal import run_table
    from hsae.progress import Training, say
    from hsae.trainconfig import TrainConfig
    from hsae.training import train

    try:
        where, table, flags = _config_file(args, "train")
        table, flags = choose_setups(table, flags, where)
        table, flags = choose_data(table, flags)
        base = TrainConfig.from_table(table, where)
        settings = override(TrainConfig, base, for_each_setup(flags, base.setup), "train", _train_description())
    except UserError as error:
        # The processes of one machine read one command line and one file: the first of them says it.
        raise Elsewhere if os.environ.get("LOCAL_RANK", "0") != "0" else error from None
    console = _console()
    result = train(settings, Training(console))
    console.print(run_table(result))
    say(console, f"next: hsae inspect --run {result.name}")
    # Torchrun would begin a run again that is whole.
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return 1 if any(row.diverged for row in result.result.rows) and not several else 0


def _train_description() -> str:
    """What `hsae train --help` says beside the flags: the names that a flag can take, and how far it reaches."""
    from hsae import registry
    from hsae.setup import stock

    return (
        "Train one or more setups, under one or more seeds, in one reading of a store.\n\n"
        f"setups: {', '.join(stock())}  (--setups NAME …)\n\n"
        f"rules: {', '.join(registry.names('hsae.rules'))}  (--encoder NAME, --decoder NAME)\n\n"
        f"variants: {', '.join(registry.names('hsae.sae'))}  (--sae NAME)\n\n"
        f"revivals of dead latents: {', '.join(registry.names('hsae.revival'))}  (--revive NAME)\n\n"
        "--encoder.lr 1e-3 sets the field in every setup that has it, --setup.bp.encoder.lr 1e-3 in one."
    )


def _evaluate(args: list[str]) -> int:
    from hsae.evaluate import EvaluateConfig, evaluate
    from hsae.inspect.losses import show
    from hsae.terminal import Terminal

    where, table, flags = _config_file(args, "evaluate")
    settings = override(EvaluateConfig, _build(EvaluateConfig, table, where), flags, "evaluate")
    show(evaluate(settings, Terminal(stderr=True)), _console(), settings.json)
    return 0


def _console() -> Console:
    from hsae.terminal import Terminal

    return Terminal(quiet=RANK > 0)


def _build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    from hsae import config

    return config.build(kind, table, where)


def _config_file(args: list[str], section: str) -> tuple[str, dict[str, Any], list[str]]:
    """(where the settings come from, that file's section, the flags left over)."""
    if args and not args[0].startswith("-"):
        from hsae import config

        return args[0], config.read_file(args[0], section), args[1:]
    return "defaults", {}, args
