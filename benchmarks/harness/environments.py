"""One virtual environment per peer, since their pins conflict. All have the PyTorch version of the one that runs this.

python benchmarks/harness/environments.py            # all that are missing
python benchmarks/harness/environments.py saelens    # prints its python
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

PEERS = Path(__file__).parents[1] / "peers"
STAMP = "complete"


def home() -> Path:
    """Where the environments are: $HSAE_BENCH_VENVS, or `benchmarks/.venvs`."""
    return Path(os.environ.get("HSAE_BENCH_VENVS") or PEERS.with_name(".venvs"))


def known() -> list[str]:
    """Peers that need an environment of their own."""
    return sorted(path.stem for path in PEERS.glob("*.txt") if not path.stem.endswith(".bare"))


def python_of(name: str) -> Path | None:
    """The python of a peer's environment; None if that was never made, or for other requirements."""
    folder = home() / name
    stamp = folder / STAMP
    return _python(folder) if stamp.exists() and stamp.read_text(encoding="utf-8") == _wanted(name) else None


def make(name: str) -> Path:
    """Make a peer's environment, if it is not there yet. Its python.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    if (there := python_of(name)) is not None:
        return there
    folder = home() / name
    print(f"making the environment of {name} in {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(_python(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # First and by itself, so that nothing else decides which build it is.
    subprocess.run([*pip, _torch()], check=True)
    without = PEERS / f"{name}.bare.txt"
    if without.exists():
        subprocess.run([*pip, "--no-deps", "--requirement", str(without)], check=True)
    subprocess.run([*pip, "--requirement", str(PEERS / f"{name}.txt")], check=True)
    (folder / STAMP).write_text(_wanted(name), encoding="utf-8")
    return _python(folder)


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _torch() -> str:
    return "torch==" + importlib.metadata.version("torch").split("+")[0]


def _wanted(name: str) -> str:
    """Changes with what is to be installed."""
    files = sorted(PEERS.glob(f"{name}*.txt"))
    return hashlib.sha256(b"".join([_torch().encode(), *(path.read_bytes() for path in files)])).hexdigest()


if __name__ == "__main__":
    for peer in sys.argv[1:] or known():
        print(make(peer))
