"""The index of evidence against the encoder alone, alternating in one run: what does everything else cost?

    python benchmarks/evidence.py --run stories260k --setups bp hebb-tied --tokens 10000000

Where the run's store is smaller than `--tokens`, it is repeated until it has as many, in a temporary folder. The
encoder alone is given activations that are in memory; the index reads the store, with its checksums.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hsae.cli import _tune_process
from hsae.evidence.build import DRIVES, ROWS, Passing
from hsae.evidence.entries import Encoder
from hsae.run import Run
from hsae.sae import SAE
from hsae.store import Store, StoreWriter
from hsae.store.manifest import keep_key


def repeated(store: Store, hook: str, tokens: int, folder: Path) -> Store:
    """A store of at least so many tokens, made of copies of another's shards."""
    manifest = store.manifest
    writer = StoreWriter(folder, {"made": "by benchmarks/evidence.py"}, manifest.dtype)
    while writer.sequences * manifest.context < tokens:
        for shard in manifest.shards:
            if shard.sequences == manifest.shard_sequences:
                ids, values, keep = store.read(shard, "tokens", hook, keep_key(hook))
                writer.write(len(writer.records), ids, {hook: values}, {hook: keep}, {hook: {}})
    tables = {"model": manifest.model, "tokenizer": {}, "text": {}, "harvest": {}}
    writer.finish(shard_sequences=manifest.shard_sequences, context=manifest.context, **tables)
    return Store(folder)


def encoding(sae: SAE, x: torch.Tensor, tokens: int) -> float:
    """Tokens a second of the encoder alone, over some activations again and again."""
    encode, rows = Encoder(sae), min(ROWS, DRIVES // sae.latents)
    parts = x.split(rows)
    encode(parts[0])
    done, start = 0, time.perf_counter()
    while done < tokens:
        for part in parts:
            encode(part)
            done += len(part)
    return done / (time.perf_counter() - start)


def indexing(sae: SAE, store: Store, hook: str) -> tuple[float, float, float]:
    """Tokens a second of the pass, and seconds of the pass and of what follows it."""
    passing = Passing(sae, store, hook)
    start = time.perf_counter()
    for _ in passing.go():
        pass
    middle = time.perf_counter()
    passing.arrays()
    return int(passing.rows) / (middle - start), middle - start, time.perf_counter() - middle


def measure(run: Run, setup: str, store: Store, rounds: int) -> dict[str, Any]:
    """One SAE: both, alternating."""
    sae, hook = run.sae(setup), run.result.hook
    chunk = next(store.chunks(hook, 4 * ROWS // store.manifest.context))
    x = chunk.activations[chunk.keep]
    alone, index, after = [], [], []
    for _ in range(rounds):
        alone.append(encoding(sae, x, store.manifest.tokens // 4))
        rate, _, rest = indexing(sae, store, hook)
        index.append(rate)
        after.append(rest)
    return {
        "setup": setup,
        "latents": sae.latents,
        "l0": run.row(setup).l0,
        "encoder": statistics.median(alone),
        "index": statistics.median(index),
        "share": statistics.median(i / a for i, a in zip(index, alone, strict=True)),
        "after_seconds": statistics.median(after),
        "seconds": statistics.median(store.manifest.tokens / i for i in index),
    }


def report(found: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"{found['tokens']:,} tokens, width {found['width']}, {found['threads']} threads, {found['rounds']} rounds",
        "",
        "| setup | latents | L0 | encoder alone, tokens/s | index, tokens/s | share | the pass | what follows |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['setup']} | {one['latents']:,} | {one['l0']:.1f} | {one['encoder']:,.0f} | {one['index']:,.0f} "
        f"| {one['share']:.0%} | {one['seconds']:.1f} s | {one['after_seconds']:.1f} s |"
        for one in found["saes"]
    ]
    return "\n".join([*lines, "", f"Peak memory of the process: {found['peak_mb']:,.0f} MB."])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="")
    parser.add_argument("--setups", nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=0, help="repeat the store until it has as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for evidence.json and evidence.md")
    args = parser.parse_args()
    _tune_process()
    run = Run.open(args.run)
    store, folder = Store.open(run.result.store), Path(tempfile.mkdtemp(prefix="hsae-"))
    try:
        if store.manifest.tokens < args.tokens:
            store = repeated(store, run.result.hook, args.tokens, folder / "store")
        setups = args.setups or [row.setup for row in run.result.rows if not row.diverged]
        found: dict[str, Any] = {
            "tokens": store.manifest.tokens,
            "width": run.result.width,
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "saes": [measure(run, setup, store, args.rounds) for setup in dict.fromkeys(setups)],
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(report(found))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "evidence.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.out / "evidence.md").write_text(report(found) + "\n")


if __name__ == "__main__":
    main()
