"""Known flaws of the pinned packages: `pip-audit` over requirements.lock, where the advisory service can be reached.

    python tools/supply/audit.py

One pin is asked about first. Where the service does not answer, that is said in one line and nothing is claimed. Every
finding is printed, and makes the exit code 1; a pin that the service does not know is printed as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environments import environment, pinned

LOCK = Path(__file__).parents[2] / "requirements.lock"
KNOWN = "h11"
"""a pin that every service knows"""


def main() -> None:
    """Ask, and say what was found."""
    pins = LOCK.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as place:
        python = environment(Path(place) / "venv", *pinned("pip-audit"))
        probe = audit(python, Path(place), [pin for pin in pins if pin.startswith(f"{KNOWN}==")])
        if probe is None or any("skip_reason" in package for package in probe):
            print("pip-audit: skipped, no advisory service answers here; nothing is known of the pinned packages")
            return
        found = audit(python, Path(place), pins)
    sys.exit(report(found))


def audit(python: Path, place: Path, pins: list[str]) -> list[dict[str, Any]] | None:
    """What the service says of each pin; None where there is no answer."""
    asked = place / "asked.txt"
    asked.write_text("\n".join(pins) + "\n", encoding="utf-8")
    flags = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "5"]
    command = [str(python), "-m", "pip_audit", "--requirement", str(asked), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None


def report(found: list[dict[str, Any]] | None) -> int:
    """Print findings and gaps; the exit code."""
    if found is None:
        print("pip-audit: the advisory service answered for one package and then failed; try again")
        return 1
    for package in found:
        if "skip_reason" in package:
            print(f"pip-audit: not known to the service: {package['name']}: {package['skip_reason']}")
    flaws = [(package, flaw) for package in found for flaw in package.get("vulns", ())]
    for package, flaw in flaws:
        mended = ", ".join(flaw.get("fix_versions", ())) or "none yet"
        print(f"pip-audit: {package['name']} {package['version']}: {flaw['id']}, mended in: {mended}")
    print(f"pip-audit: {len(found)} packages, {len(flaws)} known flaws")
    return 1 if flaws else 0


if __name__ == "__main__":
    main()
