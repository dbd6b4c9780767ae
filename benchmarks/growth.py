"""How time, memory and disk grow: from 1 M to 50 M tokens, and from 1,024 to 65,536 latents.

    python benchmarks/growth.py --out benchmarks/results --page docs
    python benchmarks/growth.py --out a --page a --millions 0.1 0.2 --latents 256 512 --steps 3     # in a minute

Every point is what a user would do: `hsae harvest` and `hsae train` in processes of their own, on the bundled model and
its stories, repeated. Each training is stopped by Ctrl-C near its end and started again, which gives the time from the
command to its first step. Stores are deleted as soon as they are measured; the largest takes 260 bytes a token. For
every curve the slope in log-log is fitted and held against what it should be.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from growth_report import draw, text

CONTEXT, BATCH = 512, 16_384
# Its steps cost the same from first to last, but for the first few.
TOPK = ("--setups", "bp", "--sae", "topk")


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="*", default=[1, 2, 5, 10, 20, 50], help="of tokens")
    parser.add_argument("--latents", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 16_384, 32_768, 65_536])
    parser.add_argument("--steps", type=int, default=30, help="of 16,384 tokens for each number of latents")
    parser.add_argument("--out", type=Path, required=True, help="folder for growth.json")
    parser.add_argument("--page", type=Path, required=True, help="folder for growth.md and growth.svg")
    asked = parser.parse_args()
    command = shlex.join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    record: dict[str, Any] = {"command": command, "machine": machine, "points": {"tokens": [], "latents": []}}
    begun = time.monotonic()
    for folder in (asked.out, asked.page):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hsae-growth-") as place:
        bench = Bench(Path(place))
        axes = {"tokens": [round(1e6 * millions) for millions in asked.millions], "latents": asked.latents}
        for axis, sizes in axes.items():
            for size in sorted(sizes):
                point = bench.tokens(size) if axis == "tokens" else bench.latents(size, asked.steps)
                record["points"][axis].append(point)
                record |= {"date": f"{datetime.now():%d %B %Y}", "seconds": time.monotonic() - begun}
                record["load"] = os.getloadavg()[1]
                # After every point, since all of it takes long.
                (asked.out / "growth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                (asked.page / "growth.md").write_text(text(record), encoding="utf-8")
                print(point, flush=True)
    draw(asked.page, record["points"])
    print(text(record))


class Bench:
    """The commands, each in a process of its own, in a cache of their own.

    Args:
        place: folder for the cache, and for the token ids.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.cache = place, place / "cache"
        self._ids = _stories()

    def tokens(self, tokens: int) -> dict[str, float]:
        """Harvest and train on so many tokens, with a restart; the store is gone afterwards."""
        harvest = self._harvest(tokens)
        store = self.cache / "activations" / "grown"
        disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        train = self._train(3200, TOPK, restart=True)
        shutil.rmtree(store)
        point = {"tokens": tokens, "harvest_rate": tokens / harvest.seconds, "harvest_memory": harvest.memory}
        point |= {"harvest_cpu": 1e6 * harvest.cpu / tokens, "train_cpu": 1e6 * train["cpu"] / tokens}
        point |= {"train_rate": train["rate"], "train_memory": train["memory"]}
        return point | {"disk": disk / 2**20, "resume": train["resume"]}

    def latents(self, latents: int, steps: int) -> dict[str, float]:
        """Train dictionaries of a size for a few steps."""
        if not (self.cache / "activations" / "grown").exists():
            self._harvest(steps * BATCH + 2 * BATCH)
        point: dict[str, float] = {"latents": latents}
        for name, flags in (("topk", TOPK), ("hebb", ("--setups", "hebb-tied"))):
            found = self._train(latents, (*flags, "--steps", str(steps)), restart=False)
            point |= {f"{name}_rate": found["rate"], f"{name}_memory": found["memory"]}
        return point

    def _harvest(self, tokens: int) -> Process:
        path = self.place / "ids.npy"
        count = -(-tokens // CONTEXT)
        np.save(path, np.resize(self._ids, (count, CONTEXT)))
        words = ["--model", "bundled", "--data", str(path), "--tokens", str(tokens), "--context", str(CONTEXT)]
        done = Process(self.cache, "harvest", *words, "--name", "grown").wait()
        path.unlink()
        return done

    def _train(self, latents: int, flags: Sequence[str], restart: bool) -> dict[str, float]:
        sizes = ["--latents", str(latents), "--batch-tokens", str(BATCH), "--held-out", str(BATCH)]
        words = ["train", "--store", "grown", *sizes, *flags, "--no-baselines", "--normalise.mode", "variance"]
        run, resume = self.cache / "runs" / "grown", math.nan
        done = [Process(self.cache, *words, "--name", "grown")]
        done[0].wait(lambda: done[0].interrupt() if restart and _near_the_end(run, self.cache) else None)
        if not (run / "run.json").exists():
            done.append(Process(self.cache, *words, "--name", "grown"))
            resume = _first_line(run, done[1])
            done[1].wait()
        rate = json.loads((run / "run.json").read_text())["rows"][0]["tokens_per_second"]
        shutil.rmtree(run)
        memory, cpu = max(process.memory for process in done), sum(process.cpu for process in done)
        return {"rate": rate, "memory": memory, "cpu": cpu, "resume": resume}


class Process:
    """`hsae` with some words, started now. When it has ended: `seconds` on the clock and of all processors, and
    `memory`, the most that was its own and resident, in MiB; pages of files, which the system takes back, do not count.
    """

    def __init__(self, cache: Path, *words: str) -> None:
        self.begun, self.seconds, self.cpu, self.memory = time.monotonic(), 0.0, 0.0, 0.0
        env = {**os.environ, "HSAE_CACHE": str(cache)}
        command = [sys.executable, "-m", "hsae", *words]
        self._before = _cpu()
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._interrupted = False

    def interrupt(self) -> None:
        """Ctrl-C, once."""
        if not self._interrupted:
            self._process.send_signal(signal.SIGINT)
        self._interrupted = True

    def look(self) -> bool:
        """Note what it holds; whether it runs."""
        if self._process.poll() is not None:
            return False
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return False
        sizes = (line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
        self.memory = max(self.memory, sum(int(size) for _, size, *_ in sizes) / 1024)
        return True

    def wait(self, meanwhile: Callable[[], object] = lambda: None) -> Process:
        """Until it ends."""
        while self.look():
            meanwhile()
            time.sleep(0.01)
        said, _ = self._process.communicate()
        self.seconds, self.cpu = time.monotonic() - self.begun, _cpu() - self._before
        if self._process.returncode not in ((0, 130) if self._interrupted else (0,)):
            sys.exit(said)
        return self


def _cpu() -> float:
    """Seconds of all processors that ended children took."""
    return sum(os.times()[2:4])


def _stories() -> np.ndarray:
    """The bundled stories as token ids, one after the other."""
    import pyarrow.parquet
    from tokenizers import Tokenizer

    import hsae

    assets = Path(hsae.__file__).parent / "assets"
    tokenizer = Tokenizer.from_file(str(assets / "bundled" / "tokenizer.json"))
    texts = pyarrow.parquet.read_table(assets / "stories.parquet").column("text").to_pylist()
    return np.concatenate([encoded.ids for encoded in tokenizer.encode_batch(texts)]).astype(np.int32)


def _lines(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count("\n")
    except OSError:
        return 0


def _near_the_end(run: Path, cache: Path) -> bool:
    """Whether four fifths of the lines of metrics are there; one comes at the first step and every ten."""
    manifest = json.loads((cache / "activations" / "grown" / "manifest.json").read_text())
    steps = (manifest["sequences"] * manifest["context"] - BATCH) // BATCH
    return _lines(run) >= max(1, 0.8 * steps / 10)


def _first_line(run: Path, process: Process) -> float:
    """Seconds from the command to the first new line of metrics, which comes within ten steps."""
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    before = _lines(run)
    while process.look():
        now = _lines(run)
        before = min(before, now)  # What was logged after the last checkpoint is cut off first.
        if now > before:
            return time.monotonic() - process.begun
        time.sleep(0.01)
    return math.nan


if __name__ == "__main__":
    main()
