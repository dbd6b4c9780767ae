"""Run notebooks in an empty folder and keep their outputs as plain text: `python tools/notebook.py FILE.ipynb …`."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def executed(path: Path, folder: Path) -> Any:
    """The notebook after a run in `folder`, where its cache goes too.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # The cache is the folder's own, so what the outputs show of it is a relative path.
    environment = {k: v for k, v in os.environ.items() if k != "HSAE_CACHE"} | {"TQDM_DISABLE": "1", "NO_COLOR": "1"}
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook


def cleaned(notebook: Any) -> Any:
    """The outputs of every cell in one, as plain text without colours; no warnings, and no times of execution."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        printed = ""
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                printed += output.text
            elif output.output_type in ("display_data", "execute_result"):
                printed += output.data.get("text/plain", "")
        text = "\n".join(line.rstrip() for line in _COLOURS.sub("", printed).splitlines()).strip("\n")
        cell.outputs = [{"output_type": "stream", "name": "stdout", "text": text + "\n"}] if text else []
    return notebook


def main() -> None:
    """Run and rewrite the notebooks named on the command line."""
    import nbformat

    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            notebook = cleaned(executed(Path(name).resolve(), Path(folder)))
        nbformat.write(nbformat.from_dict(notebook), name)


if __name__ == "__main__":
    main()
