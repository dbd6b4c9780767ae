"""Reading activations in shuffled order: hsae beside the disk's own rate and beside other ways, alternately in one run.

    python benchmarks/storage.py --short                                  # under a minute
    python benchmarks/storage.py --out benchmarks/results --saelens-python ../saelens/bin/python

All ways read the same rows. Warm: the files are in the page cache. Cold: they were dropped from it just before, which
mincore confirms; what lies below the machine may still cache. Ratios are to one thread that reads the files in order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from storage_mixing import CONTEXT, HOOK, WIDTH, Planted, compare, make_store
from storage_ways import FLOOR, ROW, Way, evict, in_order, make_arrow, resident, ways


class SaeLens:
    """sae-lens in a process of its own."""

    def __init__(self, python: str, folder: Path, seconds: float) -> None:
        script = Path(__file__).with_name("storage_saelens.py")
        command = [python, str(script), str(folder), HOOK, str(CONTEXT), str(WIDTH), str(seconds), "4096"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = json.loads(self._answer())["version"]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return line
        raise SystemExit("sae-lens: its process ended; see above")

    def rate(self) -> float:
        """Rows a second."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = json.loads(self._answer())
        return answer["rows"] / answer["seconds"]

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def rate(way: Way, seconds: float) -> float:
    """Rows a second, from opening to the last batch."""
    rows, began = 0, time.perf_counter()
    for batch in way.batches():
        rows += len(batch)
        if way.limited and time.perf_counter() - began > seconds:
            break
    return rows / (time.perf_counter() - began)


def measure(
    found: list[Way], peer: SaeLens | None, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], float]:
    """Rows a second of every way and cache, in so many rounds; and the largest share that eviction left."""
    rates: dict[str, list[float]] = {}
    stayed = 0.0
    for _ in range(rounds):
        for cache in ("cold", "warm"):
            for way in found:
                if cache not in way.caches:
                    continue
                if cache == "cold":
                    stayed = max(stayed, evict(way.files))
                elif resident(way.files) < 1:
                    for _ in in_order(way.files):
                        pass
                rates.setdefault(f"{way.name} | {cache}", []).append(rate(way, seconds))
        if peer is not None:
            name = f"sae-lens {peer.version}, cached activations, 64 contexts | warm"
            rates.setdefault(name, []).append(peer.rate())
    return rates, stayed


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(result: dict[str, Any]) -> str:
    """The result as markdown."""
    machine = f"{result['cpu']}, {result['cores']} cores, torch {result['torch']}"
    lines = [f"{result['date']}, {machine}. {result['note']}".rstrip()]
    if result["rates"]:
        lines += [f"{result['rows']:,} rows of {WIDTH} float32, pools of {result['pool_rows']:,}; medians of"]
        lines += [f"{result['rounds']} rounds. Eviction left {result['stayed_cached']:.1%} of the pages at most.", ""]
        lines += ["| way | cache | M rows/s | range | MB/s | of the floor |", "|---|---|---|---|---|---|"]
    middle = {key: statistics.median(rates) / 1e6 for key, rates in result["rates"].items()}
    for key, rates in result["rates"].items():
        name, cache = key.split(" | ")
        size = ROW // 2 if "bf16" in name else ROW
        span = f"{min(rates) / 1e6:.3g}–{max(rates) / 1e6:.3g}"
        share = middle[key] * size / (middle[f"{FLOOR} | {cache}"] * ROW)
        lines.append(f"| {name} | {cache} | {middle[key]:.3g} | {span} | {middle[key] * size:,.0f} | {share:.1%} |")
    for title, orders in result["mixing"].items():
        heads = "| order | neighbours | one sequence | one shard | spread |"
        lines += ["", f"**{title}**", "", heads, "|---|---|---|---|---|"]
        for name, m in orders.items():
            cells = (f"{m['neighbours']:.4f}", f"{m['sequence']:.2%}", f"{m['shard']:.1%}", f"{m['spread']:.1f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything; plain data."""
    result: dict[str, Any] = {"date": str(date.today()), "cpu": processor(), "cores": os.cpu_count()}
    result |= {"torch": torch.__version__, "rounds": args.rounds, "rates": {}, "mixing": {}, "note": ""}
    per, seconds = (32, 0.2) if args.short else (256, 0.5)
    pages, books, wide = Planted(32, per, 1), Planted(32, per, 2 * per), Planted(128, 8, 1)
    pool = 8 * per * CONTEXT * ROW
    result["rows"], result["pool_rows"] = pages.rows, pool // ROW
    store = make_store(folder / f"pages-{per}", pages)
    if args.only != "mixing":
        half = make_store(folder / f"half-{per}", Planted(8, per, 1), "bf16")
        rows, contexts = make_arrow(folder / f"arrow-{per}", store, 4)
        peer = SaeLens(args.saelens_python, contexts, seconds) if args.saelens_python else None
        if peer is None:
            result["note"] = "sae-lens itself was not timed: no --saelens-python."
        result["rates"], result["stayed_cached"] = measure(ways(store, half, pool, rows), peer, args.rounds, seconds)
        if peer is not None:
            peer.end()
    if args.only != "rates":
        plans = {f"Pools of {8 * per:,} contexts, 8 shards of 32; each context a document": (store, pages, pool)}
        if not args.short:
            title = "The same; documents of 512 contexts, two shards"
            plans[title] = (make_store(folder / "books", books), books, pool)
            title = "Pools of 64 contexts, 8 shards of 128, as with 256 MiB at width 2,048; each context a document"
            plans[title] = (make_store(folder / "wide", wide), wide, 64 * CONTEXT * ROW)
        for title, (planted, made, size) in plans.items():
            found = compare(planted, made, size)
            result["mixing"][title] = {name: asdict(mixed) for name, mixed in found.items()}
    return result


def main() -> None:
    """Make the stores, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small stores: under a minute")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the stores here; else they go to a temporary folder")
    parser.add_argument("--out", type=Path, help="write storage.json and storage.md here")
    parser.add_argument("--saelens-python", default="", help="a Python that has sae-lens")
    parser.add_argument("--only", choices=("rates", "mixing"), help="one half; --out keeps the other")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsae-storage-", dir=".") as temporary:
        result = run(args, args.folder or Path(temporary))
    before = args.out / "storage.json" if args.out else None
    if args.only and before and before.exists():
        # The half that was not run stays as it was.
        there = json.loads(before.read_text(encoding="utf-8"))
        result = there | {key: value for key, value in result.items() if value or key not in ("rates", "mixing")}
    text = report(result)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "storage.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.out / "storage.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
