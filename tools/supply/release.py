"""A release: sdist and wheel, built twice and compared, tried in an empty environment, with an SBOM and checksums.

    python tools/supply/release.py dist

What is built is the last commit, whatever else lies in the folder. The second build is in another folder, later, and
under another umask; where one byte differs, there is no release. The wheel, made from the sdist, is installed into an
empty environment with the versions of requirements.lock, and harvests, trains and shows a run there. The SBOM
(CycloneDX) lists that environment: what a user gets.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environments import environment, pinned, run

ROOT = Path(__file__).parents[2]
TRIES = (
    "--version",
    "harvest --help",
    "harvest --model bundled --data bundled --tokens 8192 --name tried",
    "train --store tried --setups bp hebb-tied --latents 128 --batch-tokens 512 --held-out 1024 --name tried",
    "inspect --run tried",
)
"""what must work in an empty environment"""


def main() -> None:
    """Make the release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files, made new")
    out = parser.parse_args().out
    if out.exists():
        sys.exit(f"{out}: is there already; delete it, or name another folder")
    with tempfile.TemporaryDirectory(prefix="hsae-release-") as place:
        work = Path(place)
        tools = environment(work / "tools", *pinned("build", "hatchling", "cyclonedx-bom"))
        built = twice(tools, work)
        tried = work / "tried"
        python = environment(tried, str(built["whl"]), "--constraint", str(work / "one" / "requirements.lock"))
        attempt(python, work / "cache")
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools")
        out.mkdir(parents=True)
        for path in built.values():
            shutil.copy(path, out)
        sbom(
            tools, python, work / "one" / "pyproject.toml", out / f"{built['gz'].name.removesuffix('.tar.gz')}.cdx.json"
        )
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(out.iterdir()))
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print(sums, end="")


def twice(tools: Path, work: Path) -> dict[str, Path]:
    """Build the last commit in two folders at two times; the files by their suffix."""
    epoch = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
    builds = []
    for folder, umask in (("one", 0o022), ("another", 0o077)):
        begun, before = int(time.time()), os.umask(umask)
        try:
            builds.append(build(tools, work / folder, epoch))
        finally:
            os.umask(before)
        while int(time.time()) <= begun + 1:  # Archives know times to two seconds.
            time.sleep(0.1)
    one, another = ({path.suffix.lstrip("."): path for path in built.iterdir()} for built in builds)
    for suffix, path in one.items():
        if digest(path) != digest(another[suffix]):
            sys.exit(f"{path.name}: two builds of one commit differ")
    print(f"built twice, the same bytes: {', '.join(path.name for path in one.values())}")
    return one


def build(tools: Path, folder: Path, epoch: str) -> Path:
    """Build the last commit in a folder; where the files are."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract", "--no-same-permissions"], cwd=folder, input=archive, check=True)
    # The sdist, and the wheel from it: so the sdist is whole. Without isolation hatchling is the pinned one.
    run(tools, "-m", "build", "--no-isolation", cwd=folder, env={**os.environ, "SOURCE_DATE_EPOCH": epoch})
    return folder / "dist"


def attempt(python: Path, cache: Path) -> None:
    """Do a little of everything in an empty environment."""
    hsae, env, empty = python.with_name("hsae"), {**os.environ, "HSAE_CACHE": str(cache)}, cache.with_name("empty")
    empty.mkdir()
    for words in TRIES:
        said = run(hsae, *words.split(), cwd=empty, env=env)
        print(f"hsae {words}: {said.strip().splitlines()[-1] if said.strip() else 'done'}")


def sbom(tools: Path, python: Path, project: Path, path: Path) -> None:
    """Write the bill of materials of an environment."""
    flags = ["--pyproject", project, "--mc-type", "library", "--output-reproducible", "--output-format", "JSON"]
    run(tools.with_name("cyclonedx-py"), "environment", *flags, "--output-file", path, python)


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
