"""How long `hsae serve` takes to start and to answer, and how much memory it holds.

    python benchmarks/serve.py --run bundled --setup bp

The run must be under the cache, and its index must stand (`hsae inspect` makes it). Every request is a new connection.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote


def main() -> None:
    """Start the server, ask, print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="name of a run under the cache")
    parser.add_argument("--setup", required=True, help="one of its setups")
    parser.add_argument("--seed", default="0", help="its seed")
    asked = parser.parse_args()
    sae = quote(f"{asked.run}:{asked.setup}:{asked.seed}", safe=":")
    begun = time.perf_counter()
    command = [sys.executable, "-m", "hsae", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the server did not start"
        base = found[0].rstrip("/")
        get(base)
        print(f"start to the first answer  {1000 * (time.perf_counter() - begun):7.0f} ms")
        report("start page's list, first", [timed(f"{base}/api/runs")])
        report("start page's list, again", [timed(f"{base}/api/runs") for _ in range(20)])
        report("table of latents, first", [timed(f"{base}/api/sae/{sae}/summary")])
        report("table of latents, again", [timed(f"{base}/api/sae/{sae}/summary") for _ in range(20)])
        summary = json.loads(get(f"{base}/api/sae/{sae}/summary"))
        blocks = -(-summary["dictionary"] // summary["block"])
        addresses = [f"{base}/api/sae/{sae}/block/{number}" for number in range(blocks)]
        report(f"{summary['block']} latents, first", [timed(address) for address in addresses])
        report(f"{summary['block']} latents, again", [timed(address) for address in addresses])
        status = Path(f"/proc/{server.pid}/status")
        if status.exists() and (held := re.search(r"VmRSS:\s+(\d+)", status.read_text())):
            print(f"memory                     {int(held[1]) / 1024:7.0f} MiB")
    finally:
        begun = time.perf_counter()
        server.send_signal(2)
        server.wait(10)
        print(f"Ctrl-C to the end          {1000 * (time.perf_counter() - begun):7.0f} ms")


def get(address: str) -> bytes:
    """What is there."""
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


def timed(address: str) -> float:
    """Seconds until it is there."""
    begun = time.perf_counter()
    get(address)
    return time.perf_counter() - begun


def report(name: str, seconds: list[float]) -> None:
    """A line: the median, and the longest of several."""
    longest = f"   at most {1000 * max(seconds):.1f}" if len(seconds) > 1 else ""
    print(f"{name:<26} {1000 * statistics.median(seconds):7.1f} ms{longest}")


if __name__ == "__main__":
    main()
