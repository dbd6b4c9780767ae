"""Reading a store from an object store on the loopback while something trains: with and without reading ahead.

    python benchmarks/remote.py --short                       # under a minute
    python benchmarks/remote.py --out benchmarks/results

The object store is moto's server in a process of its own, with two buckets: near, which answers at once, and far, which
waits `--wait` ms before each answer, as long as a connection of 100 MB/s takes for a shard. After each batch a step of
`--step` ms is computed, dense products on one thread. All ways read the same rows in the same order, alternately; who
begins changes. The cache of shards is empty before each way, but for the one that says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from storage import processor

from hsae.store import Store, StoreWriter
from hsae.store import rows as rows_module
from hsae.store.place import Place

HOOK, CONTEXT, WIDTH = "hook", 128, 512
SERVER = """
import sys, time
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

moto = DomainDispatcherApplication(create_backend_app)

def answer(environ, start):
    if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].startswith("/far/"):
        time.sleep(float(sys.argv[2]) / 1000)
    return moto(environ, start)

run_simple("127.0.0.1", int(sys.argv[1]), answer, threaded=True)
"""
BUCKETS = ("near", "far")


class WhenAsked:
    """An executor that begins its work only when a result is asked for: a stream without reading ahead."""

    def __init__(self, workers: int, thread_name_prefix: str = "") -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix)
        self._waiting: list[Callable[[], None]] = []

    def submit(self, work: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        """A future that begins all the work given so far when it is asked."""
        owner, mine = self, list[Future[Any]]()

        class Later(Future):
            def result(self, timeout: float | None = None) -> Any:
                owner._begin()
                return mine[0].result(timeout)

        self._waiting.append(lambda: mine.append(self._threads.submit(work, *args, **options)))
        return Later()

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        for begin in waiting:
            begin()

    def shutdown(self) -> None:
        """Wait for what was begun."""
        self._threads.shutdown()


def make(folder: Path, shards: int, mib: int) -> Store:
    """A store of noise."""
    sequences = (mib << 20) // (CONTEXT * WIDTH * 4)
    writer = StoreWriter(folder, {}, "fp32")
    keep = torch.ones(sequences, CONTEXT, dtype=torch.bool)
    for index in range(shards):
        values = torch.randn(sequences, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(index))
        writer.write(index, torch.zeros(sequences, CONTEXT), {HOOK: values}, {HOOK: keep}, {HOOK: {}})
    tables: dict[str, Any] = {"model": {}, "tokenizer": {}, "text": {}, "harvest": {}}
    writer.finish(shard_sequences=sequences, context=CONTEXT, **tables)
    return Store(folder)


@contextmanager
def server(wait: float) -> Iterator[str]:
    """moto's server in a process of its own; its address."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port), str(wait)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def step(ms: float) -> Callable[[torch.Tensor], None]:
    """Something that computes for so long."""
    weights = torch.randn(WIDTH, WIDTH)

    def compute(batch: torch.Tensor) -> None:
        end = time.perf_counter() + ms / 1000
        while time.perf_counter() < end:
            torch.mm(batch[:512], weights)

    return compute


def ways(local: Store, pool: int, batch: int) -> dict[str, tuple[bool, Callable[[], Iterator[torch.Tensor]]]]:
    """For each way of reading: whether the cache of shards is emptied before, and the batches of one epoch."""

    def rows(store: Store) -> Iterator[torch.Tensor]:
        stream = store.rows(HOOK, 0, pool_bytes=pool)
        batches = stream.batches(batch)
        for _ in range(stream.rows_per_epoch // batch):
            yield next(batches)
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]

    def chunks(store: Store) -> Iterator[torch.Tensor]:
        for chunk in store.chunks(HOOK, batch // CONTEXT):
            yield chunk.activations.flatten(0, 1)

    def rows_behind(url: str) -> Iterator[torch.Tensor]:
        kept, rows_module.ThreadPoolExecutor = rows_module.ThreadPoolExecutor, WhenAsked
        try:
            yield from rows(Store.open(url))
        finally:
            rows_module.ThreadPoolExecutor = kept

    def chunks_behind(url: str) -> Iterator[torch.Tensor]:
        store = Store.open(url)
        store.ahead = lambda shard: None
        yield from chunks(store)

    near, far = map(address, BUCKETS)
    return {
        "shuffled: local": (False, lambda: rows(Store(local.folder))),
        "shuffled: near, ahead": (True, lambda: rows(Store.open(near))),
        "shuffled: near, not ahead": (True, lambda: rows_behind(near)),
        "shuffled: far, ahead": (True, lambda: rows(Store.open(far))),
        "shuffled: far, not ahead": (True, lambda: rows_behind(far)),
        "shuffled: all in the cache": (False, lambda: rows(Store.open(near))),
        "in order: local": (False, lambda: chunks(Store(local.folder))),
        "in order: near, ahead": (True, lambda: chunks(Store.open(near))),
        "in order: near, not ahead": (True, lambda: chunks_behind(near)),
        "in order: far, ahead": (True, lambda: chunks(Store.open(far))),
        "in order: far, not ahead": (True, lambda: chunks_behind(far)),
    }


def address(bucket: str) -> str:
    """The store's URL in a bucket."""
    return f"s3://{bucket}/store"


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows a second of every way in every round."""
    os.environ["HSAE_CACHE"] = str(folder / "cache")
    local = make(folder / "local", args.shards, args.mib)
    rates: dict[str, list[float]] = {}
    for bucket in BUCKETS:
        for file in sorted(local.folder.iterdir()):
            if file.is_file():
                Place(address(bucket)).put(file, file.name)
    batch, compute = args.batch, step(args.step)
    found = ways(local, args.pool << 20, batch)
    for number in range(args.rounds):
        order = list(found)
        for name in [*order[number % len(order) :], *order[: number % len(order)]]:
            empty, batches = found[name]
            if empty:
                shutil.rmtree(folder / "cache" / "remote" / "shards", ignore_errors=True)
            elif "cache" in name:
                for shard in (store := Store.open(address("near"))).manifest.shards:
                    store.read(shard, "tokens")
            count, began = 0, time.perf_counter()
            for rows in batches():
                compute(rows)
                count += len(rows)
            rates.setdefault(name, []).append(count / (time.perf_counter() - began))
    return {
        "date": str(date.today()),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1]),
        "torch": torch.__version__,
        "shards": args.shards,
        "mib": args.mib,
        "pool": args.pool,
        "batch": batch,
        "step": args.step,
        "wait": args.wait,
        "rounds": args.rounds,
        "rates": {name: rates[name] for name in found},
    }


def report(result: dict[str, Any]) -> str:
    """The result as markdown."""
    middle = {name: statistics.median(rates) for name, rates in result["rates"].items()}
    only = result["batch"] / (result["step"] / 1000)
    lines = [
        f"{result['date']}, {result['cpu']}, {result['cores']} cores (load {result['load']}), torch {result['torch']}.",
        f"{result['shards']} shards of {result['mib']} MiB, width {WIDTH}, float32; pools of {result['pool']} MiB.",
        f"After each batch of {result['batch']:,} rows a step of {result['step']:g} ms ({only / 1e3:,.0f} k rows/s).",
        f"Far: {result['wait']:g} ms before each answer.",
        f"One epoch from opening on; medians of {result['rounds']} rounds.",
        "",
        "| way | k rows/s | range | MB/s | of local |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rates in result["rates"].items():
        local = middle[f"{name.partition(':')[0]}: local"]
        span = f"{min(rates) / 1e3:,.0f}–{max(rates) / 1e3:,.0f}"
        size = middle[name] * WIDTH * 4 / 1e6
        lines.append(f"| {name} | {middle[name] / 1e3:,.0f} | {span} | {size:,.0f} | {middle[name] / local:.0%} |")
    for kind in ("shuffled", "in order"):
        ratios = {b: middle[f"{kind}: {b}, ahead"] / middle[f"{kind}: {b}, not ahead"] for b in BUCKETS}
        lines += ["", f"{kind}: ahead is {ratios['near']:.2f} × not ahead near, {ratios['far']:.2f} × far"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the results if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="little data, one round")
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--mib", type=int, default=32, help="of a shard")
    parser.add_argument("--pool", type=int, default=128, help="MiB of a pool")
    parser.add_argument("--batch", type=int, default=4096, help="rows of a batch")
    parser.add_argument("--step", type=float, default=30.0, help="ms of computing after each batch")
    parser.add_argument("--wait", type=float, default=300.0, help="ms before each answer of the far bucket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for remote.json and remote.md")
    args = parser.parse_args()
    if args.short:
        args.shards, args.mib, args.pool, args.rounds = 8, 8, 16, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, server(args.wait) as endpoint:
        os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
        import fsspec

        for bucket in BUCKETS:
            fsspec.filesystem("s3").mkdir(bucket)
        result = measure(args, Path(folder))
    print(report(result))
    if args.out is not None:
        (args.out / "remote.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "remote.md").write_text(report(result))


if __name__ == "__main__":
    main()
