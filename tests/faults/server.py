"""A process that has imported everything, and forks itself for each command: real processes, there in milliseconds.

It reads one JSON order a line and answers each with one line, after the command has ended or was ended. It starts no
thread and loads no model, so that its children are as good as processes that were started. It ends with its input.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

import torch

PRELOADED = ("hsae.cli", "hsae.harvesting", "hsae.training", "hsae.evidence.build", "hsae.inspect.terminal", "tyro")
PRELOADED += ("hsae.inspect.tables", "hsae.export._job", "hsae.importing._job", "transformer_lens.model_bridge")
PRELOADED += ("transformers.models.gpt_neo.modeling_gpt_neo", "rich._emoji_codes", "typeguard")


def become(order: dict[str, Any], begun: int) -> NoReturn:
    """The child: `hsae` with the order's words, and with its fault. It closes `begun` when it begins."""
    from hsae import cli, interrupt

    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for file in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDONLY) if file == 0 else out, file)
    # A shell has what it starts in the background ignore Ctrl-C, and that is handed down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.listen()  # as `main` does: the signal may come before
    os.environ["HSAE_CACHE"] = order["cache"]
    os.chdir(order["cache"])
    torch.set_num_threads(1)  # starts none: the parent computes nothing
    if fault := order["fault"]:
        shim = ctypes.CDLL(None)
        trace = os.open(fault["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if fault["trace"] else -1
        shim.fault_clock(ctypes.c_long(fault["clock"]))
        shim.fault_arm(fault["under"].encode(), ctypes.c_long(fault["at"]), fault["what"], trace)
    for place, value in order["settings"].items():
        module, _, name = place.rpartition(".")
        setattr(importlib.import_module(module), name, value)
    sys.argv = ["hsae", *order["words"]]
    os.close(begun)
    cli.main()


def wait(child: int, order: dict[str, Any]) -> tuple[int, bool]:
    """Its exit status, and whether it hung and was ended. It gets the order's signal when its time comes."""
    watched, sent = os.pidfd_open(child), order["after"] is None
    end = time.monotonic() + order["limit"]
    due = end if sent else time.monotonic() + order["after"]
    try:
        while True:
            left = (end if sent else due) - time.monotonic()
            ready, _, _ = select.select([watched, sys.stdin], [], [], max(0.0, left))
            if watched in ready:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), False
            if ready or sent:  # nobody is there any more, or it hangs
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return -signal.SIGKILL, True
            os.kill(child, order["signal"])
            sent = True
    finally:
        os.close(watched)


def main() -> None:
    """Do what is ordered, one order after the other."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what all children share they need not look through
    print("ready", flush=True)
    while line := sys.stdin.readline():
        order, (here, there) = json.loads(line), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(here)
            become(order, there)
        os.close(there)
        os.read(here, 1)
        os.close(here)
        start = time.monotonic()
        code, hung = wait(child, order)
        print(json.dumps({"code": code, "hung": hung, "seconds": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    main()
