"""The packages that are compared with, each in an environment of its own."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
# The packages, as pip knows them, of the readers in this folder.
PACKAGES = {
    "saelens": "sae-lens",
    "sparsify": "eai-sparsify",
    "dictionary_learning": "dictionary-learning",
    "delphi": "eai-delphi",
    "sae_dashboard": "sae-dashboard",
}


def environment(name: str) -> Path:
    """The python of a package's environment, made if it is not there yet."""
    sys.path.insert(0, str(BENCHMARKS))
    from harness import environments  # pyright: ignore[reportMissingImports]

    if name in environments.known():
        return environments.make(name)
    folder = environments.home() / name
    python = folder / "bin" / "python"
    files = [HERE / f"{name}.bare.txt", HERE / f"{name}.txt"]
    stamp, wanted = folder / "complete", "".join(file.read_text(encoding="utf-8") for file in files)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"making the environment of {name} in {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if name == "delphi":
            subprocess.run([*pip, "torch==" + importlib.metadata.version("torch").split("+")[0]], check=True)
        subprocess.run([*pip, "--no-deps", "--requirement", str(files[0])], check=True)
        subprocess.run([*pip, "--requirement", str(files[1])], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def ask(package: str, argument: Path) -> str:
    """Run a package's reader; what it prints."""
    command = [str(environment(package)), str(HERE / f"with_{package}.py"), str(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{package}: its reader failed\n{done.stderr[-3000:]}")
    return done.stdout


def version(package: str) -> str:
    """The version in a package's environment."""
    code = f"import importlib.metadata as m; print(m.version({PACKAGES[package]!r}))"
    return subprocess.run([environment(package), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
