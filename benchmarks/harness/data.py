"""The activations that all tools train on: a store's rows, or synthetic ones, in one .npy file that all map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from hsae.store import Store
from hsae.synthetic import SyntheticConfig, generate

HELD_OUT = 16_384


@contextmanager
def rows_file(store: str, hook: str, width: int, tokens: int, held_out: int = HELD_OUT) -> Iterator[tuple[Path, str]]:
    """A temporary file of shuffled rows, the held-out ones last, and what they are.

    Args:
        store: name or path of an activation store; empty: synthetic rows.
        hook: hook point of the store; needed only if it has several.
        width: of synthetic rows.
        tokens: rows to train on, at most.
    """
    if store:
        rows, told = _of_store(store, hook, tokens, held_out)
    else:
        rows, told = _synthetic(width, tokens, held_out)
    with TemporaryDirectory(prefix="hsae-bench-") as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, rows)
        yield path, told


def _of_store(name: str, hook: str, tokens: int, held_out: int) -> tuple[np.ndarray, str]:
    store = Store.open(name)
    hook, record = store.hook(hook)
    last = -(-held_out // store.manifest.context)
    ends = store.manifest.sequences - last
    train, held = (
        torch.cat([chunk.activations[chunk.keep] for chunk in store.chunks(hook, 64, first, end)])
        for first, end in ((0, ends), (ends, store.manifest.sequences))
    )
    held = held[-held_out:]
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:tokens]]
    told = f"{len(train):,} rows of {store.name}, {hook}, width {record.width}, variance {record.variance:.3g}"
    return torch.cat([train, held]).numpy(), told


def _synthetic(width: int, tokens: int, held_out: int) -> tuple[np.ndarray, str]:
    active = 8 * math.sqrt(width / 64)
    config = SyntheticConfig(width=width, features=8 * width, tokens=tokens + held_out, active=active)
    parts = [x.flatten(0, 1) for x, _ in generate(config)]
    rows = torch.cat(parts)[: tokens + held_out]
    told = f"{tokens:,} synthetic rows, {config.features} features in {width} dimensions, {config.active:.3g} a row"
    return rows.numpy(), told
