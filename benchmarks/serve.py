"""How long `hsae serve` takes to start and to answer, alone and among 200 clients, and how much memory it holds.

    python benchmarks/serve.py --run bundled --setup bp --out benchmarks/results

The run must be under the cache, and its index must stand (`hsae inspect` makes it). The server and its clients
(`crowd.py`) are processes of their own. Asked alone, every request is a new connection; in the crowd every client keeps
one, first without a pause (so that 200 requests are always in flight), then with pauses as readers make them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hsae.errors import UserError
from hsae.run import Run

IDLE = 7.0
"""seconds after which the server has closed connections that nobody uses"""


def main() -> None:
    """Start the server, ask, print and keep the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of a run under the cache")
    parser.add_argument("--setup", required=True, help="one of its setups")
    parser.add_argument("--seed", default="0", help="its seed")
    parser.add_argument("--clients", type=int, default=200, help="at the same time")
    parser.add_argument("--seconds", type=float, default=20.0, help="for which they ask")
    parser.add_argument("--pauses", type=float, nargs="*", default=[0.0, 2.0], help="mean seconds between requests")
    parser.add_argument("--out", type=Path, help="folder for serve.json and serve.md")
    asked = parser.parse_args()
    try:
        Run.open(asked.run).sae(asked.setup, int(asked.seed))
    except UserError as error:
        parser.error(str(error))
    sae = f"{asked.run}:{asked.setup}:{asked.seed}"
    begun, load = time.perf_counter(), os.getloadavg()[0]
    command = [sys.executable, "-m", "hsae", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the server did not start"
        base = found[0].rstrip("/")
        get(base)
        lines = [("start to the first answer", [time.perf_counter() - begun])]
        lines += alone(base, quote(sae, safe=":"))
        # The language model is there from now on.
        crowd(base, sae, 1, 0.0, 0.0)
        crowds = []
        for pause in asked.pauses:
            time.sleep(IDLE)
            before = held(server.pid)
            found = crowd(base, sae, asked.clients, asked.seconds, pause)
            time.sleep(IDLE)
            crowds.append(found | {"pause": pause, "before": before, "after": held(server.pid)})
    finally:
        begun = time.perf_counter()
        server.send_signal(2)
        server.wait(10)
    lines.append(("Ctrl-C to the end", [time.perf_counter() - begun]))
    text = "\n".join([*words(lines), *(line for found in crowds for line in table(found, asked.clients))])
    print(text)
    if asked.out:
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        machine += f", load average before {load:.1f}"
        head = f"`python benchmarks/serve.py {' '.join(told(asked))}`, {datetime.now():%d %B %Y}, {machine}."
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "serve.md").write_text(f"# `hsae serve`\n\n{head}\n\n{text}\n", encoding="utf-8")
        kept = {"machine": machine, "alone": dict(lines), "crowds": crowds}
        (asked.out / "serve.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def told(asked: argparse.Namespace) -> list[str]:
    """The flags, without where the result goes."""
    pauses = [f"{pause:g}" for pause in asked.pauses]
    flags = ["--run", asked.run, "--setup", asked.setup, "--clients", str(asked.clients)]
    return [*flags, "--seconds", f"{asked.seconds:g}", "--pauses", *pauses]


def alone(base: str, sae: str) -> list[tuple[str, list[float]]]:
    """One request after the other."""
    lines = [("the list of runs, first", [timed(f"{base}/api/runs")])]
    lines.append(("the list of runs, again", [timed(f"{base}/api/runs") for _ in range(20)]))
    lines.append(("the table of latents, first", [timed(f"{base}/api/sae/{sae}/summary")]))
    lines.append(("the table of latents, again", [timed(f"{base}/api/sae/{sae}/summary") for _ in range(20)]))
    summary = json.loads(get(f"{base}/api/sae/{sae}/summary"))
    blocks = -(-summary["dictionary"] // summary["block"])
    addresses = [f"{base}/api/sae/{sae}/block/{number}" for number in range(blocks)]
    lines.append((f"{summary['block']} latents, first", [timed(address) for address in addresses]))
    lines.append((f"{summary['block']} latents, again", [timed(address) for address in addresses]))
    return lines


def crowd(base: str, sae: str, clients: int, seconds: float, pause: float) -> dict[str, Any]:
    """What `crowd.py` finds."""
    command = [sys.executable, str(Path(__file__).with_name("crowd.py")), base, sae]
    flags = ["--clients", str(clients), "--seconds", str(seconds), "--pause", str(pause)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=seconds + 180)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def held(process: int) -> dict[str, int]:
    """What a process holds: MiB of memory now and at most so far, open files, threads. Linux only."""
    status = Path(f"/proc/{process}/status").read_text()
    sizes = {name: int(size) // 1024 for name, size in re.findall(r"(VmRSS|VmHWM):\s+(\d+)", status)}
    threads = re.search(r"Threads:\s+(\d+)", status)
    return {
        "memory": sizes["VmRSS"],
        "peak": sizes["VmHWM"],
        "files": len(os.listdir(f"/proc/{process}/fd")),
        "threads": int(threads[1]) if threads else 0,
    }


def get(address: str) -> bytes:
    """What is there."""
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


def timed(address: str) -> float:
    """Seconds until it is there."""
    begun = time.perf_counter()
    get(address)
    return time.perf_counter() - begun


def words(lines: list[tuple[str, list[float]]]) -> list[str]:
    """A table: the median, and the longest of several."""
    rows = ["| alone | ms | at most |", "|---|---:|---:|"]
    for name, seconds in lines:
        longest = f"{1000 * max(seconds):.1f}" if len(seconds) > 1 else ""
        rows.append(f"| {name} | {1000 * statistics.median(seconds):.1f} | {longest} |")
    return rows


def table(found: dict[str, Any], clients: int) -> list[str]:
    """What a crowd was given."""
    pause, kinds, before, after = found["pause"], found["kinds"], found["before"], found["after"]
    answers = sum(kind["answers"] for kind in kinds.values())
    how = f"{pause:g} s of pause between requests on average" if pause else "no pause between requests"
    said = f"{clients} clients for {found['seconds']:.0f} s, {how}: {answers:,} answers"
    said += f", {answers / found['seconds']:.0f} a second."
    rows = ["", said, "", "| | answers | told to come again | wrong | p50 ms | p99 ms | longest |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, of in kinds.items():
        times = f"{of['p50']:.0f} | {of['p99']:.0f} | {of['max']:.0f}"
        rows.append(f"| {name} | {of['answers']:,} | {of['refused']} | {of['wrong']} | {times} |")
    held_ = ((what, before[what], after[what]) for what in ("memory", "files", "threads"))
    said = ", ".join(f"{what} {first} → {last}{' MiB' if what == 'memory' else ''}" for what, first, last in held_)
    return [*rows, "", f"Before → after: {said}; memory at most {after['peak']} MiB."]


if __name__ == "__main__":
    main()
