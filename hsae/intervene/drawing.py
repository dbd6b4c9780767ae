"""The terminal's face of the two verbs: results in, rich renderables out. Nothing is read as markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hsae.errors import visible
from hsae.figures import NONE, figure, percent
from hsae.inspect.ink import Ink, keyword_line
from hsae.inspect.tables import open_table
from hsae.intervals import Estimate
from hsae.intervene.effects import Effects
from hsae.intervene.site import Head
from hsae.intervene.steering import Continuation, Steered
from hsae.intervene.tally import Change, Hurt, Shift
from hsae.intervene.trials import Ablation, Control
from hsae.lists import NAMED, named


def draw_effects(found: Effects, ink: Ink, width: int) -> Iterator[RenderableType]:
    """What `hsae ablate` prints, part by part. The last ablation, of all latents together, is drawn in full."""
    last = found.ablations[-1]
    doing = "ablate" if found.set_to == 0 else f"set to {found.set_to:g}:"
    yield from _headline(found.head, f"{doing} {named(last.latents)}", found.notes)
    which = "held-out sequences" if found.which == "held-out" else "sequences in which it fires most strongly"
    yield Text(
        f"{found.sequences:,} {which}, {found.positions:,} positions, {found.predictions:,} predictions; "
        f"loss of the model as it is: {found.clean:.4f}\n"
    )
    columns = ("fires", "Δ all", "±", "Δ there", "±", "KL there")
    table = open_table(("ablated", False), *((name, True) for name in columns))
    for one in found.ablations:
        alone = len(one.latents) == 1
        _add(table, f"latent {one.latents[0]}" if alone else "all together", f"{one.fires:,}", one.overall, one.firing)
        for control in one.controls:
            _add_control(table, control)
    yield table
    yield Text(
        "Nats per prediction, above 0: worse. all: over all predictions; there: over those made where it fires. "
        "±: half the 95% interval, over sequences; of a control, over its times. fires: positions.",
        style="dim",
    )
    if last.hurt:
        yield Text.assemble("\n", ("Predictions hurt most", "bold"), ("  (* it fires there)", "dim"))
        yield from (_hurt(one, ink, width) for one in last.hurt)
    if last.rises or last.falls:
        yield Text.assemble("\n", ("Mean probability where it fires", "bold"))
        yield _shifts(last)


def _headline(head: Head, title: str, notes: Sequence[str]) -> Iterator[Text]:
    yield Text(visible(f"{title} · {head.setup}, seed {head.seed} · run {head.run}"), style="bold")
    yield Text(visible(f"store {head.store} · {head.hook} · model {head.model}"), style="dim")
    for note in notes:
        yield Text(visible(f"note: {note}"), style="yellow")


def _add(table: Table, name: str, fires: str, overall: Change, firing: Change) -> None:
    cells = (overall.loss, overall.half, firing.loss, firing.half)
    table.add_row(name, fires, *map(_nats, cells, (True, False) * 2), _nats(firing.kl, False))


def _add_control(table: Table, control: Control) -> None:
    directions = control.kind == "directions"
    times = control.overall.count if control.overall else 0
    name = f"  {'random direction' if directions else 'other, like rate'} ×{times}"
    cells = (_mean(control.overall), _half(control.overall), _mean(control.firing), _half(control.firing))
    table.add_row(name, "", *map(_nats, cells, (True, False) * 2), "", style="dim")


def _mean(found: Estimate | None) -> float | None:
    return found.mean if found else None


def _half(found: Estimate | None) -> float | None:
    return found.half if found else None


def _nats(value: float | None, signed: bool) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return ("+" if signed and value > 0 else "") + figure(value)


def _hurt(one: Hurt, ink: Ink, width: int) -> Text:
    line = Text(f"{'*' if one.fires else ' '} {one.before:6.2f} → {one.after:6.2f}  ", no_wrap=True)
    room = width - line.cell_len
    after = min(16, room // 3)
    text = (*one.context, one.target)
    strengths = [0.0] * len(one.context) + [1.0]
    return line.append_text(keyword_line(text, strengths, len(one.context), room - after, after, ink))


def _shifts(one: Ablation) -> Table:
    table = open_table(
        ("rises", False),
        ("before", True),
        ("after", True),
        ("", False),
        ("falls", False),
        ("before", True),
        ("after", True),
    )
    for column in (table.columns[0], table.columns[4]):
        column.min_width = column.max_width = 18
    for i in range(max(len(one.rises), len(one.falls))):
        table.add_row(*_shift(one.rises, i), "", *_shift(one.falls, i))
    return table


def _shift(shifts: Sequence[Shift], i: int) -> tuple[RenderableType, str, str]:
    if i >= len(shifts):
        return "", "", ""
    one = shifts[i]
    return Text(visible(one.text[:100]).replace(" ", "␣")), percent(one.before), percent(one.after)


def draw_steered(found: Steered, ink: Ink, width: int) -> Iterator[RenderableType]:
    """What `hsae steer` prints, part by part."""
    del ink, width  # the table finds its own widths, and nothing is shaded
    yield from _headline(found.head, f"steer by {named([one.latent for one in found.latents])}", found.notes)
    what = {"max": "its highest on the store", "mean": "its mean where it fires", "activation": "as it is"}[found.unit]
    units = ", ".join(figure(one.unit) for one in found.latents[:NAMED]) + (", …" if len(found.latents) > NAMED else "")
    done = "sets the latent to" if found.clamp else "adds"
    where = "everywhere" if found.prompt_too else "where it writes"
    how = f"sampled at temperature {found.temperature:g}" if found.temperature else "the likeliest tokens"
    yield Text(f"strength 1 {done} an activation of {units} ({what}), {where}; {how}", style="dim")
    yield Text.assemble("\n", visible("".join(found.prompt_text)), (" …", "dim"))
    table = open_table(("strength", True), ("KL", True), ("norm", True))
    table.add_column("goes on", overflow="fold")
    for one in (found.unchanged, *found.steered):
        name = "none" if one.strength is None else f"{one.strength:g}"
        norm = NONE if one.norm is None else f"{one.norm:.2f}"
        table.add_row(name, _nats(one.kl, False), norm, _written(one))
    yield table
    yield Text(
        "KL: of the next token from the unchanged model's, mean over the prompt, pushed there too, in nats. norm: of "
        "the pushed activations there, as a multiple of the usual.",
        style="dim",
    )


def _written(one: Continuation) -> Text:
    text = Text(visible("".join(one.text)))
    return text.append(" (end of the text)", style="dim") if one.end == "text" else text
