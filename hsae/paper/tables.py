"""The report's tables, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hsae.intervals import Estimate
from hsae.paper.claims import number
from hsae.paper.findings import AblationPart, InitPart, Trained
from hsae.paper.published import METRICS, SETUPS, TABLE_1, TITLES

HEADS = {"mse": "MSE", "evr": "EVR", "evr_pooled": "EVR pooled", "l1": "L1", "l0": "L0", "dictionary": "dict"}


def table_rows(trained: Trained) -> Iterator[Sequence[str]]:
    """Table 1: for each setup the paper's line and ours."""
    for setup in SETUPS:
        paper, line = TABLE_1[setup], trained.lines[setup]
        yield (
            TITLES[setup],
            "paper",
            *(_pair(m, *getattr(paper, m)) if m in METRICS else "–" for m in HEADS),
        )
        for name, of in (("held out", line.held_out), ("train", line.train), ("batches", line.batch)):
            yield ("", name, *(_spread(m, of.get(m)) for m in HEADS))


def _pair(metric: str, mean: float, std: float) -> str:
    return f"{number(metric, mean)} ({number(metric, std)})"


def _spread(metric: str, found: Estimate | None) -> str:
    if found is None:
        return "–"
    if found.std is None or found.half is None:
        return number(metric, found.mean)
    low, high = found.mean - found.half, found.mean + found.half
    return f"{_pair(metric, found.mean, found.std)} [{number(metric, low)}, {number(metric, high)}]"


def markdown_table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def diverged(trained: Trained) -> Iterator[str]:
    """What diverged and when, if anything did."""
    told = [
        f"- `{name}`, seed {seed}: {reason.split(';')[0]}"
        for name, line in trained.lines.items()
        for seed, reason in line.diverged.items()
    ]
    if told:
        yield "Diverged:\n\n" + "\n".join(told)


def ablation_rows(part: AblationPart) -> Iterator[Sequence[str]]:
    """The default initialisation."""
    for arm in part.trained.arms:
        line, fall = part.trained.lines[arm.name], part.falls.get(arm.name)
        due = "–" if fall is None else "never" if fall.underflow is None else f"step {fall.underflow:,.0f}"
        lowest = "–" if fall is None else f"{fall.last:.3f}"
        metrics = [number(m, line.mean(m)) for m in HEADS]
        if len(line.diverged) == len(line.seeds):
            metrics[0] = "diverged"
        yield (f"`{arm.name}`", arm.label, *metrics, lowest, due)


def init_rows(part: InitPart) -> Iterator[Sequence[str]]:
    """The sweep of the initial scale, beside the paper's lines."""
    for base in ("bp-tied", "hebb-tied"):
        blank = ("", "–", "–")
        yield (f"**{TITLES[base]}**", "paper", *blank[1:], "–", *_paper(base), "")
        for arm in part.trained.arms:
            if arm.base == base:
                line, start = part.trained.lines[arm.name], part.starts[arm.name]
                distance = part.distances.get(arm.name)
                yield (
                    f"`{arm.name}`",
                    arm.label,
                    f"{start.row_norm:.2f}",
                    f"{start.l0:.2f}",
                    f"{start.dictionary:,}",
                    *(number(m, line.mean(m)) for m in HEADS),
                    "–" if distance is None else f"{distance:.2f}",
                )


def _paper(base: str) -> list[str]:
    return [number(m, TABLE_1[base].mean(m)) if m in METRICS else "–" for m in HEADS]


def cell(text: str) -> str:
    """Text of a store as text of Markdown: nothing in it is a mark."""
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, name)
    return "".join(f"\\{c}" if c in "\\`*_[]" else c for c in text)
