"""Pages that are made from the code: every verb with its keys, the registries, and the notebook."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keys import key_table, prose, summary

from hsae import registry
from hsae.config import Registered
from hsae.sharing.markdown import block, code, table
from hsae.verbs import HELP, LAB, LAB_HELP, VERBS

ROOT = Path(__file__).parents[2]
# The verbs that the command line does by functions of its own: their settings, and the page that tells more.
OWN = {
    "harvest": ("hsae.harvesting", "HarvestConfig"),
    "train": ("hsae.trainconfig", "TrainConfig"),
    "evaluate": ("hsae.evaluate", "EvaluateConfig"),
}
GUIDES = {
    "inspect": "inspector.md",
    "browse": "browse.md",
    "serve": "server.md",
    "interpret": "interpret.md",
    "compare": "compare.md",
    "ablate": "interventions.md",
    "steer": "interventions.md",
    "verify": "verify.md",
    "repair": "verify.md",
    "export": "exports.md",
    "import": "exports.md",
    "push": "sharing.md",
    "pull": "sharing.md",
    "paper": "paper/README.md",
    "lab surgery": "lab/surgery.md",
    "lab alignment": "lab/alignment.md",
    "lab hybrid-lm": "lab/hybrid-lm.md",
    "lab nm-hebb": "lab/nm-hebb.md",
    "lab all": "lab/README.md",
    "harvest": "storage.md",
    "train": "concepts.md",
    "evaluate": "concepts.md",
}
REGISTRIES = {
    "rules": ("hsae.rules", "Rule", "Learning rules", "--encoder NAME, --decoder NAME"),
    "variants": ("hsae.sae", "Variant", "Kinds of SAE", "--sae NAME"),
    "revivals": ("hsae.revival", "Revival", "Reviving dead latents", "--revive NAME"),
}


@dataclass(frozen=True)
class Told:
    """A verb: what it does in a line, its settings, and the field that takes the words after it."""

    name: str
    line: str
    config: type
    words: str

    @property
    def page(self) -> str:
        """The name of its page."""
        return f"{self.name.replace(' ', '-')}.md"


def verbs() -> list[Told]:
    """Every verb, in the order of `hsae --help`.

    Raises:
        ValueError: the help and the table of verbs disagree.
    """
    lines: dict[str, str] = {}
    for before, text in (("", HELP), ("lab ", LAB_HELP)):
        for found in re.finditer(r"^  ([\w-]+) {2,}(\S.*)$", text, re.MULTILINE):
            lines[before + found[1]] = found[2]
    del lines["lab"]
    lines.setdefault("pull", "a run from the Hugging Face hub")
    known = {**{name: (*home, "") for name, home in OWN.items()}}
    labs = {f"lab {name}": verb for name, verb in LAB.items()}
    known |= {name: (verb.home, verb.config, verb.words) for name, verb in (VERBS | labs).items()}
    if missing := known.keys() ^ lines.keys():
        raise ValueError(f"`hsae --help` and the verbs differ: {', '.join(sorted(missing))}")
    told = []
    for name, line in lines.items():
        home, config, words = known[name]
        told.append(Told(name, line, getattr(importlib.import_module(home), config), words))
    return told


def pages() -> Iterator[tuple[str, str]]:
    """(place in the site, Markdown) of every page made from the code."""
    told = verbs()
    yield "verbs/index.md", _verb_list(told)
    for verb in told:
        yield f"verbs/{verb.page}", _verb(verb)
    for name, (package, base, title, flags) in REGISTRIES.items():
        yield f"registries/{name}.md", _registry(package, base, title, flags)
    yield "registries/setups.md", _setups()
    yield "notebook.md", _notebook(ROOT / "notebooks" / "quickstart.ipynb")


def _verb_list(told: list[Told]) -> str:
    lines = [[f"[`hsae {verb.name}`]({verb.page})", prose(verb.line)] for verb in told]
    return (
        "# Verbs\n\n"
        "`hsae VERB [CONFIG.toml] [--key value …]`: a config file sets the keys in a section of the verb's name, such "
        "as\n`[train]`; flags override it. The key `batch_tokens` is the flag `--batch-tokens`; both spellings are "
        "read.\n\n"
        f"{table(['verb', 'what it does'], lines)}\n\n"
        "Exit codes: 0 done, 1 a setup diverged, 2 a mistake that the one line on the standard error explains, "
        "130 Ctrl-C.\nStores and runs go to `cache/` in the working folder, or to `$HSAE_CACHE`.\n"
    )


def _verb(verb: Told) -> str:
    word = f" {verb.words.upper()}" if verb.words else ""
    parts = [
        f"# hsae {verb.name}",
        f"{prose(summary(verb.config))} [More about it](../{GUIDES[verb.name]}).",
        block(f"hsae {verb.name}{word} [CONFIG.toml] [--key value …]", "text"),
        key_table(verb.config),
        *_inner(verb.config, ""),
    ]
    if verb.name == "train":
        parts.append(
            "`setup` is a table of setups by name. `--encoder.lr 1e-3` sets a key in every setup that has it, "
            "`--setup.bp.encoder.lr 1e-3` in one. Which other keys `encoder`, `decoder`, `sae` and `revive` have "
            "depends on what they name: see [rules](../registries/rules.md), "
            "[kinds of SAE](../registries/variants.md), [revivals](../registries/revivals.md) and the "
            "[stock setups](../registries/setups.md)."
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _inner(kind: type, prefix: str) -> Iterator[str]:
    """The tables inside a config, each under a heading that is its place."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, place = hints[field.name], f"{prefix}{field.name}."
        if typing.get_origin(hint) is dict:
            hint, place = typing.get_args(hint)[1], f"{place}NAME."
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)) or issubclass(hint, Registered):
            continue
        yield f"## {code(place.rstrip('.'))}\n\n{prose(summary(hint))}\n\n{key_table(hint, place)}"
        yield from _inner(hint, place)


def _registry(package: str, base: str, title: str, flags: str) -> str:
    parent = getattr(importlib.import_module(package), base)
    parts = [f"# {title}", f"Chosen by {code(flags)}, or in a config file by {code(parent.selector)}."]
    for name in registry.names(package):
        kind = registry.find(package, name, parent)
        module = inspect.cleandoc(importlib.import_module(kind.__module__).__doc__ or "")
        parts += [f"## {code(name)}", module_prose(module), key_table(kind) or "It has no keys."]
    return "\n\n".join(parts) + "\n"


def module_prose(text: str) -> str:
    """A module's docstring: paragraphs are text, what is indented or a formula by itself stays as it stands."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        as_it_stands = any(line.startswith((" ", "\t")) or re.match(r"\S+ {2,}\S", line) for line in lines)
        parts.append(block(inspect.cleandoc(paragraph), "text") if as_it_stands else prose(" ".join(lines)))
    return "\n\n".join(parts)


def _setups() -> str:
    from hsae.setup import STOCK, stock

    parts = [
        "# Stock setups",
        "Chosen by `--setups NAME …`. A setup is a few lines of TOML; a `[train.setup.NAME]` table in a config file "
        "changes one of these, or makes a new one. Its keys are those of [`setup.NAME`](../verbs/train.md#setupname).",
    ]
    for name in stock():
        parts += [f"## {code(name)}", block((STOCK / f"{name}.toml").read_text(encoding="utf-8").strip(), "toml")]
    return "\n\n".join(parts) + "\n"


def _notebook(path: Path) -> str:
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(block(text, "python"))
        parts += [block("".join(output["text"]).rstrip(), "text") for output in cell["outputs"]]
    return "\n\n".join(parts) + f"\n\nThe notebook itself is {code(f'notebooks/{path.name}')}.\n"
