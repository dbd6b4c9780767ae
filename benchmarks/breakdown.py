"""Where the time of a step goes: the compiled parts of training and of the fast tap, and the rest.

    python benchmarks/breakdown.py --store stories260k

Every call of compiled code is timed; what is left of a step is PyTorch's and Python's. For the PyTorch path the
operations that take longest are told.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from hsae.cli import _tune_process
from hsae.kernels import adam, attention, dense, native, softhebb, sparse
from hsae.loop import Loop
from hsae.setup import resolve
from hsae.store import Store
from hsae.tapping import forward
from hsae.trainconfig import TrainConfig

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ReLU": ("bp", {"encoder": {"lr": 8e-3}, "decoder": {"lr": 8e-3}}),
    "TopK, k = 32": ("bp", {"sae": {"kind": "topk", "k": 32}}),
    "residual-hebb, k = 32": ("residual-hebb", {}),
    "SoftHebb, tied": ("hebb-tied", {"init_std": 0.25}),
}
STEPS, SETTLED = 10, 40


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the time of every compiled function."""

    def watched(call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                spent[name(*arguments)] += time.perf_counter() - start

        return run

    plain = watched(native.call, lambda library, function, *_: f"{library}.{function}")
    with (
        mock.patch.object(sparse, "call", plain),
        mock.patch.object(softhebb, "call", plain),
        mock.patch.object(adam, "call", plain),
        mock.patch.object(native, "call", plain),
        mock.patch.object(forward, "attend", watched(attention.attend, lambda *_: "attention")),
        mock.patch.object(dense.Affine, "into", watched(dense.Affine.into, lambda *_: "products")),
    ):
        yield


def table(title: str, spent: dict[str, float], total: float, times: int) -> None:
    """Print each part's milliseconds and share."""
    print(f"\n## {title}: {1e3 * total / times:.1f} ms\n\n| part | ms | share |\n|---|---:|---:|")
    rest = total - sum(spent.values())
    for name, seconds in [*sorted(spent.items(), key=lambda item: -item[1]), ("PyTorch and Python", rest)]:
        if seconds > 0.002 * total:
            print(f"| {name} | {1e3 * seconds / times:.2f} | {seconds / total:.0%} |")


def training(store: Store, pytorch: bool) -> None:
    """Steps of 16,384 tokens at 3,200 latents, once L0 has settled."""
    hook, record = store.hook()
    rows = store.rows(hook, 0, 64).batches(16_384)
    batches = [next(rows) for _ in range(8)]
    settings = TrainConfig()
    for title, (name, change) in TASKS.items():
        setups = resolve([name], {name: change}, "breakdown")
        settings = dataclasses.replace(TrainConfig(), setups=(name,), setup=setups, log_every=10**6)
        centre = torch.tensor(record.mean) if setups[name].centre == "mean" else torch.zeros(record.width)
        scale = (5.6e-4 / record.variance) ** 0.5
        loop = Loop(settings, 10**6, {name: centre * scale}, scale, batches[0])
        for step in range(SETTLED if not pytorch else 3):
            loop.advance(batches[step % 8])
        if pytorch:
            with profile(activities=[ProfilerActivity.CPU]) as found:
                loop.advance(batches[0])
            print(f"\n## {title}, PyTorch\n")
            print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=9, max_name_column_width=28))
            continue
        spent: dict[str, float] = defaultdict(float)
        with timed(spent):
            start = time.perf_counter()
            for step in range(STEPS):
                loop.advance(batches[step % 8])
            total = time.perf_counter() - start
        l0 = loop.learners[0].l0
        table(f"{title}{f' (L0 {l0:.0f})' if l0 >= 0 else ''}", spent, total, STEPS)


def harvesting() -> None:
    """The bundled model's layers below block 4, on one core, so that parts do not overlap."""
    from hsae.loading import load_lm

    lm, hooks = load_lm("bundled", "cpu"), ["blocks.4.hook_resid_pre"]
    tokens = torch.randint(lm.vocabulary, (8, 512), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lm.trust_fast(tokens, hooks)
    spent: dict[str, float] = defaultdict(float)
    with timed(spent):
        lm.tap(tokens, hooks)
        spent.clear()
        start = time.perf_counter()
        for _ in range(STEPS):
            lm.tap(tokens, hooks)
        total = time.perf_counter() - start
    table("Harvest, 8 × 512 tokens, one thread", spent, total, STEPS)
    torch.set_num_threads(threads)


def main() -> None:
    """Print the profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="", help="activation store; the newest by default")
    parser.add_argument("--pytorch", action="store_true", help="the PyTorch path (HSAE_KERNELS=torch) instead")
    settings = parser.parse_args()
    _tune_process()
    if settings.pytorch:
        os.environ["HSAE_KERNELS"] = "torch"
    training(Store.open(settings.store), settings.pytorch)
    if not settings.pytorch:
        harvesting()


if __name__ == "__main__":
    main()
