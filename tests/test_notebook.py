"""The notebook runs as it stands, says what it promises, and is committed without a trace of the machine."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
needs_kernel = pytest.mark.skipif(
    not (importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel")),
    reason="needs nbclient and ipykernel",
)


@needs_kernel
def test_it_runs_and_the_spliced_model_is_close_to_the_clean_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A name of its own: another `notebook` may be installed.
    spec = importlib.util.spec_from_file_location("hsae_notebook", ROOT / "tools" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setenv("HSAE_CACHE", str(tmp_path / "not-this-one"))
    ran = tool.cleaned(tool.executed(NOTEBOOK, tmp_path))
    printed = "\n".join(output["text"] for cell in ran.cells for output in cell.get("outputs", ()))
    clean, spliced, mean = map(float, re.findall(r"(?:loss|spliced|in its place) (\d\.\d+)", printed)[:3])
    assert 1.5 < clean < spliced < clean + 0.3 < mean
    assert float(re.findall(r"loss recovered (\S+)", printed)[0]) > 0.95
    assert float(re.findall(r"residual-hebb +EVR (\S+)", printed)[0]) > 0.9
    assert "Top contexts" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    committed = [cell["source"] for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    assert len(committed) == len(ran.cells)


def test_it_holds_text_alone_and_no_path_of_a_machine():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert outputs
    assert {(output["output_type"], output["name"]) for output in outputs} == {("stream", "stdout")}
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w./])/(home|root|tmp|work|Users|opt|usr)/|\\u001b", text)
    assert len(text) < 50_000


def test_its_links_lead_to_pages_of_the_site():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "](../docs/" not in text, "the page of the site is made of the same text, and its folder is another"
