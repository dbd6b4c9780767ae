"""The rules of the house that code can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "hsae"
# The faces: what looks at runs and stores, or writes them for others. The command line may import anything.
FACES = {"inspect", "export", "lab", "cli"}
MODULES = sorted(path for path in HOUSE.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> set[str]:
    """Every `hsae.X` that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "hsae"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_the_core_never_imports_a_face(path: Path):
    part = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    if part in FACES or part == "__main__":
        return
    assert not {name for name in imports(path) if name.split(".")[1:2] and name.split(".")[1] in FACES}


def test_the_check_above_sees_imports():
    assert "hsae.inspect.terminal.run_table" in imports(HOUSE / "cli.py")


def test_importing_hsae_costs_nothing():
    code = "import sys, hsae; print({'torch', 'numpy', 'rich', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
