"""The face of `hsae evaluate`: one table, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict

from rich.console import Console, RenderableType
from rich.text import Text

from hsae.errors import visible
from hsae.evaluate import Evaluation
from hsae.figures import NONE, figure, fraction
from hsae.inspect.tables import open_table
from hsae.plain import finite
from hsae.splice import Loss


def show(evaluation: Evaluation, console: Console, as_json: bool = False) -> None:
    """Print an evaluation."""
    if as_json:
        console.file.write(json.dumps(finite(asdict(evaluation)), indent=1, allow_nan=False) + "\n")
        return
    for part in draw(evaluation):
        console.print(part)


def draw(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Everything to print, part by part."""
    facts = (f"store {evaluation.store}", evaluation.hook, f"model {evaluation.model}")
    yield Text(visible(f"run {evaluation.run}"), style="bold")
    yield Text(visible(" · ".join(facts)), style="dim")
    for note in evaluation.notes:
        yield Text(visible(f"note: {note}"), style="yellow")
    numbers = ("seed", "L0", "CE", "ΔCE", "KL", "of zero", "of mean")
    table = open_table(("spliced in", False), *((name, True) for name in numbers))
    table.columns[0].max_width = 24  # so that the numbers have the room they need

    def add(name: str, seed: str, l0: str, loss: Loss, *recovered: str) -> None:
        more = loss.cross_entropy - evaluation.clean.cross_entropy
        nats = (_number(loss.cross_entropy, "{:.4f}".format), _number(more, figure), _number(loss.kl, figure))
        table.add_row(Text(visible(name)), seed, l0, *nats, *recovered)

    for sae in evaluation.saes:
        recovered = (fraction(sae.recovered_zero), fraction(sae.recovered_mean))
        add(sae.setup, str(sae.seed), f"{sae.l0:.1f}", Loss(sae.cross_entropy, sae.kl), *recovered)
    table.add_section()
    add("nothing (clean)", NONE, NONE, evaluation.clean)
    add("the mean", NONE, NONE, evaluation.mean)
    add("zeros", NONE, NONE, evaluation.zero)
    yield table
    yield Text(
        f"Over {evaluation.tokens:,} predictions, {evaluation.spliced:,} positions spliced; CE: cross-entropy in nats "
        "per token; ΔCE: above the clean model's; KL: KL(clean ‖ spliced), nats per token; of zero, of mean: the share "
        "of that ablation's ΔCE that the SAE recovers (1: all).",
        style="dim",
    )


def _number(value: float, words: Callable[[float], str]) -> str:
    """A number in words that know only finite ones."""
    return words(value) if math.isfinite(value) else str(value)
