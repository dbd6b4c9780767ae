"""What every reader does: take a list of jobs as JSON, one process for all of them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def serve(read: Callable[[dict[str, Any]], dict[str, Tensor]]) -> None:
    """Do the jobs of the file named on the command line; each one's tensors go to its `out`."""
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        torch.manual_seed(0)
        with torch.no_grad():
            found = read(job)
        torch.save({key: value.detach().clone() for key, value in found.items()}, job["out"])


def bare(package: str) -> None:
    """Let modules of a package be imported without its `__init__`, which imports what reading an SAE needs not."""
    folder = next(Path(path) / package for path in sys.path if (Path(path) / package).is_dir())
    module = types.ModuleType(package)
    module.__path__ = [str(folder)]
    sys.modules[package] = module


def rows(job: dict[str, Any]) -> Tensor:
    """The activations of a job."""
    return torch.load(job["x"])


def shake(*parameters: Tensor) -> None:
    """Numbers for parameters that start at 0 or 1, so that a bias which is forgotten shows."""
    for parameter in parameters:
        parameter.data += 0.3 * torch.randn_like(parameter)
