"""The documentation: made from the code where it tells of keys and verbs, and built with warnings as errors."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from hsae import registry
from hsae.trainconfig import TrainConfig
from hsae.verbs import LAB, VERBS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site() -> Iterator[dict[str, ModuleType]]:
    """The modules that make the site, which import each other by their bare names."""
    names = ("keys", "pages", "links")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(ROOT / "tools" / "site"))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(ROOT / "tools" / "site"))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    depth: float = 0.5
    """how deep | or `a|b`, <b>"""


@dataclass(frozen=True)
class Outer(Inner):
    """What is outside. It has `code`."""

    names: tuple[str, ...] = ("a", "b")
    """names
    on two lines"""
    mode: Literal["x", "y"] = "x"
    """which"""
    inner: Inner = field(default_factory=Inner)
    """a table"""
    many: dict[str, Inner] = field(default_factory=dict)
    """tables"""
    seed: int | None = None
    """a number"""


class TestKeys:
    def test_type_default_and_meaning(self, site: dict[str, ModuleType]):
        assert list(site["keys"].rows(Outer)) == [
            ("depth", "number", "`0.5`", "how deep | or `a|b`, <b>"),
            ("names", "list of text", '`"a"`, `"b"`', "names on two lines"),
            ("mode", "one of `x`, `y`", '`"x"`', "which"),
            ("inner", "table", "see below", "a table"),
            ("many", "tables by name", "see below", "tables"),
            ("seed", "integer, or unset", "unset", "a number"),
        ]

    def test_meanings_are_text_in_a_cell(self, site: dict[str, ModuleType]):
        line = site["keys"].key_table(Inner, "many.NAME.").splitlines()[2]
        assert line == "| `many.NAME.depth` | number | `0.5` | how deep \\| or <code>a\\|b</code>, &lt;b> |"

    def test_a_key_that_nobody_explains_is_an_error(self, site: dict[str, ModuleType]):
        @dataclass(frozen=True)
        class Mute:
            """Says nothing."""

            key: int = 1

        with pytest.raises(ValueError, match=r"Mute\.key: no line under it"):
            list(site["keys"].rows(Mute))


class TestPages:
    def test_every_verb_has_a_page_with_every_key(self, site: dict[str, ModuleType]):
        made, verbs = dict(site["pages"].pages()), site["pages"].verbs()
        labs = {f"lab {name}" for name in LAB}
        assert {verb.name for verb in verbs} == {*VERBS, "harvest", "train", "evaluate", *labs}
        for verb in verbs:
            page = made[f"verbs/{verb.page}"]
            for key in dataclasses.fields(verb.config):
                assert f"| `{key.name}` |" in page
            assert f"]({verb.page})" in made["verbs/index.md"]
            assert site["pages"].GUIDES[verb.name] in page

    def test_the_tables_inside_a_config(self, site: dict[str, ModuleType]):
        page = dict(site["pages"].pages())["verbs/train.md"]
        for key in ("setup.NAME.schedule.warmup", "setup.NAME.target_l0", "normalise.mode", "synthetic.features"):
            assert f"| `{key}` |" in page
        assert f"| `latents` | integer | `{TrainConfig().latents}` | size of the dictionary |" in page

    @pytest.mark.parametrize(
        ("page", "package"), [("rules", "hsae.rules"), ("variants", "hsae.sae"), ("revivals", "hsae.revival")]
    )
    def test_every_entry_of_a_registry(self, site: dict[str, ModuleType], page: str, package: str):
        text = dict(site["pages"].pages())[f"registries/{page}.md"]
        assert re.findall(r"^## `(\S+)`$", text, re.MULTILINE) == registry.names(package)

    def test_a_setup_is_shown_as_it_stands(self, site: dict[str, ModuleType]):
        text = dict(site["pages"].pages())["registries/setups.md"]
        for path in sorted((ROOT / "hsae" / "setups").glob("*.toml")):
            shown = text.split(f"## `{path.stem}`\n\n```toml\n")[1].split("```")[0]
            assert tomllib.loads(shown) == tomllib.loads(path.read_text())

    def test_the_notebook_is_a_page(self, site: dict[str, ModuleType]):
        text = dict(site["pages"].pages())["notebook.md"]
        assert "TransformerBridge.boot_transformers" in text
        assert re.search(r"```text\nloss \d\.\d+; spliced", text)

    def test_formulas_of_a_docstring_stay_as_they_stand(self, site: dict[str, ModuleType]):
        told = site["pages"].module_prose("Text of\ntwo_lines.\n\n    ΔW = a_b\n    b  = | c\n\nMore `x|y`.")
        assert told == "Text of two\\_lines.\n\n```text\nΔW = a_b\nb  = | c\n```\n\nMore <code>x\\|y</code>."
        assert site["pages"].module_prose("Where:\n\na    first\nb    second") == (
            "Where:\n\n```text\na    first\nb    second\n```"
        )


class TestLinks:
    def test_out_of_docs_and_back(self, site: dict[str, ModuleType], tmp_path: Path):
        for name, text in {
            "docs/a.md": "",
            "docs/sub/b.md": "",
            "code/c.py": "x = 1\n",
            "D.md": "[a](docs/a.md) [c](code/c.py)",
            "e/f.md": "",
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        links = site["links"]
        text = (
            "[d](../../D.md#h) ![i](i.svg) [c](../../code/c.py) [b](../a.md) [w](https://x.y) "
            "`[d](../../D.md)` [no](../../no.md)"
        )
        assert links.rewritten(text, "sub/b.md", tmp_path) == (
            "[d](../repository/D.md#h) ![i](i.svg) [c](../repository/code/c.py.md) [b](../a.md) [w](https://x.y) "
            "`[d](../../D.md)` [no](../../no.md)"
        )
        made = dict(links.reached({"sub/b.md": text}, tmp_path))
        assert made == {
            "repository/D.md": "[a](docs/a.md) [c](code/c.py)",
            "repository/code/c.py.md": "# code/c.py\n\n```python\nx = 1\n```\n",
        }
        turned = links.rewritten(made["repository/D.md"], "repository/D.md", tmp_path)
        assert turned == "[a](../a.md) [c](code/c.py.md)"
        assert dict(links.reached({"x.md": "[e](../e)"}, tmp_path)) == {
            "repository/e/index.md": "# e\n\n- [f.md](f.md)\n",
            "repository/e/f.md": "",
        }


@pytest.mark.skipif(
    os.environ.get("CI") != "true" and not importlib.util.find_spec("mkdocs"),
    reason="needs mkdocs-material and mkdocstrings",
)
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    # No network: whatever would be fetched fails, and a warning is an error.
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr)
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    for path, html in pages.items():
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?https?://", html), path
        assert not re.search(r"MATH\d+HTAM", html), path
    concepts = pages[tmp_path / "site" / "concepts.html"]
    assert concepts.count("<math") > 20
    assert "```" not in re.sub(r"<code>.*?</code>", "", concepts, flags=re.DOTALL)
    assert "encode_latents" in pages[tmp_path / "site" / "library" / "sae.html"]


def test_outputs_in_the_tutorial_are_those_of_its_commands():
    """Their shape only: `tools/transcripts.py` prints them anew."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        command, _, output = re.sub(r"\\\n *", "", block).partition("\n")
        assert command.startswith("$ ")
        assert output.strip()
        assert max(len(line) for line in output.splitlines()) <= 100
        assert not re.search(r"(?<![\w./])/(home|root|tmp|work|Users)/", output)
