"""The rules of the house that code can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "hsae"
# The faces: what looks at runs and stores, or writes them for others. The command line may import anything.
FACES = {"inspect", "browse", "serve", "interpret", "compare", "intervene", "export", "importing", "sharing"}
FACES |= {"lab", "paper", "verify", "cli"}
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


def test_the_rule_in_contributing_works(tmp_path: Path):
    text = (HOUSE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    use = """
import torch
from hsae.forward import Forward
from hsae.sae.relu import ReLU
x = torch.eye(3)
weights = Weights(torch.ones(2, 3))
forward = Forward(x, {"encoder": Weights(weights.W, torch.zeros(2))}, ReLU())
rule = Covariance(lr=1.0, decay=0.5)
change, _ = rule.displacement(rule.statistics(forward.synapse("encoder")), weights, {})
print((change.W * 2).tolist())
"""
    (tmp_path / "covariance.py").write_text(code + use)
    done = subprocess.run([sys.executable, tmp_path / "covariance.py"], capture_output=True, text=True, check=True)
    # The code is 1 on every token, so it varies with nothing: only the decay is left, half of 1.
    assert [[round(v, 4) for v in row] for row in ast.literal_eval(done.stdout)] == [[-1.0] * 3] * 2


def test_functions_are_not_hidden_by_the_modules_that_hold_them():
    # Twice: the first use imports the module, which must not take the name's place.
    twice = "[callable(getattr(hsae, name)) for name in hsae.__all__ * 2]"
    code = f"import hsae; print(*{twice})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"True"}
