"""Run the commands of a page anew and put in what they print: `python tools/transcripts.py docs/tutorial.md`.

A block is `$ command` and its output. All commands of a page run in one empty folder with `configs/` in it, 80 columns
wide and without colour, so that no page shows what no command has printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```console\n\$ ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def rerun(markdown: str) -> str:
    """The page with new outputs.

    Raises:
        SystemExit: a command failed.
    """
    left_out = {"HSAE_CACHE", "HF_TOKEN"}
    scripts = str(Path(sys.executable).parent)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "configs").symlink_to(ROOT / "configs")
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        environment |= {"COLUMNS": "80", "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}

        def run(match: re.Match[str]) -> str:
            command = ["bash", "-o", "pipefail", "-c", match[1]]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode not in (0, 1):  # 1: a setup diverged
                raise SystemExit(f"{match[1]}: {done.stderr}")
            lines = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
            return f"```console\n$ {match[1]}\n{lines}\n```"

        return BLOCK.sub(run, markdown)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(rerun(path.read_text(encoding="utf-8")), encoding="utf-8")
