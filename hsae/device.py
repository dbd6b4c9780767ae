"""Which device computes."""

from __future__ import annotations

import os

import torch

from hsae.errors import UserError, choices


def choose_device(name: str) -> torch.device:
    """The device that a name stands for; `auto` is the first that is there of cuda, mps, cpu.

    Of several processes on one machine, started by torchrun, each has a GPU of its own: that of its local number.

    Raises:
        UserError: the named one is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, ok in there.items() if ok)
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        if there.get(name.partition(":")[0], False):
            device = torch.device(name)
            torch.zeros(1, device=device)
            return device
    except (RuntimeError, AssertionError):  # such as cuda:7 on a machine with one
        pass
    raise UserError(f"device {name!r} is not there; {choices(name, [device for device, ok in there.items() if ok])}")
