"""A throw-away environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).with_name("requirements.txt")


def environment(folder: Path, *wanted: str) -> Path:
    """Make a virtual environment and install into it; its Python.

    Args:
        folder: where; must not be there.
        wanted: what pip is to install, as it takes it.
    """
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
    return python


def pinned(*names: str) -> list[str]:
    """The lines of requirements.txt for some tools."""
    pins = {line.partition("==")[0]: line for line in PINS.read_text(encoding="utf-8").split()}
    return [pins[name] for name in names]


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints; where it fails, all that it said, and the end of this one."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}exit code {done.returncode}")
    return done.stdout
