"""Fast paths, each beside the plain PyTorch function that defines its result.

The fast paths of the CPU are C, compiled for the machine's own processor when first used (see `native`). Where there
is no C compiler, or `HSAE_KERNELS=torch` is set, PyTorch computes the same.
"""

from __future__ import annotations

import torch

from hsae.kernels.native import load, off


def by(device: torch.device) -> str:
    """A few words on what computes on a device; none where that goes without saying."""
    if device.type != "cpu":
        return ""
    if off():
        return " by PyTorch"
    if load("sparse") is None:
        return " by PyTorch (for compiled code, several times as fast: pip install 'hsae[fast]')"
    return " by compiled code"
