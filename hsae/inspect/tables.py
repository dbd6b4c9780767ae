"""A run's tables in the terminal: metrics and baselines, what was recovered of a known truth, local rules' steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hsae.errors import visible
from hsae.figures import NONE, fraction, scientific
from hsae.intervals import estimate
from hsae.record import Baseline, Row

Format = Callable[[Any], str]


def open_table(*columns: tuple[str, bool]) -> Table:
    """A table without a frame; a column is its heading and whether it is flush right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading, right in columns:
        table.add_column(heading, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    return table


def run_tables(rows: Sequence[Row], baselines: Sequence[Baseline], held_out: int, dead_window: int) -> Group:
    """Everything that a run says of its SAEs.

    A setup under several seeds is a line of means, and under it half the width of their 95% intervals.

    Args:
        rows: the SAEs.
        baselines: what they must beat.
        held_out: the tokens that all was measured on; 0: nothing was measured.
        dead_window: the training tokens that say which latents are dead; 0: not known.
    """
    parts: list[RenderableType] = [_metrics(rows, baselines)]
    parts += [
        Text(visible(f"{row.setup}, seed {row.seed}, diverged {row.diverged}"), style="red")
        for row in rows
        if row.diverged
    ]
    if not held_out:
        parts.append(Text("Not measured: there was no store to measure on.", style="dim"))
        return Group(*parts)
    trained = " (train: as many trained ones)" if any(row.train_evr_pooled is not None for row in rows) else ""
    caption = (
        f"Over {held_out:,} held-out tokens{trained}; EVR: mean of per-token ratios; "
        "dict: latents that fire on any of them"
    )
    caption += f"; dead: on none of the last {dead_window:,} training tokens." if dead_window else "."
    several = any(len(same) > 1 for same in _by_setup(rows))
    parts.append(Text(caption + (" ±: half the 95% interval of the mean over seeds." if several else ""), style="dim"))
    parts += ["", _explained(rows)]
    caption = "EVR over tokens: mean, standard deviation, median; pooled. On trained tokens: pooled, MSE, L0."
    parts.append(Text(caption, style="dim"))
    if any(row.mcc is not None for row in rows):
        caption = "The true directions: mean best cosine, and a random dictionary's; one-to-one; share above 0.9."
        parts += ["", _recovery(rows), Text(caption, style="dim")]
    if any(row.rule for row in rows):
        parts += ["", _diagnostics(rows)]
        caption = (
            "The encoder's last step. winners: entropy / ln(latents); norm, bias: mean distance from 1, mean drift; "
            "anti: anti-Hebbian share; cosines of the update with the negative gradients of the MSE, of L1 and L2."
        )
        parts.append(Text(caption, style="dim"))
    if any(row.alignment for row in rows):
        caption = (
            "Cosines with the Hebbian direction, in the last step: of the encoder's and the decoder's learning signal "
            "over a batch; token: mean over tokens; step: of the step taken."
        )
        parts += ["", _alignment(rows), Text(caption, style="dim")]
    return Group(*parts)


def _metrics(rows: Sequence[Row], baselines: Sequence[Baseline]) -> Table:
    columns: list[tuple[str, Callable[[Row], float | None], Format]] = [
        ("MSE", lambda r: r.mse, scientific),
        ("EVR", lambda r: r.evr, fraction),
        ("pooled", lambda r: r.evr_pooled, fraction),
        ("train", lambda r: r.train_evr_pooled, fraction),
        ("L1", lambda r: r.l1, scientific),
        ("L0", lambda r: r.l0, _tenths),
        ("dict", lambda r: r.dictionary, _whole),
        ("dead", lambda r: r.dead, _whole),
    ]
    table = open_table(("setup", False), ("seed", True), *((heading, True) for heading, _, _ in columns))
    _fill(table, rows, columns)
    for one in baselines:
        cells = (scientific(one.mse), fraction(one.evr), fraction(one.evr_pooled), NONE, NONE)
        table.add_row(one.name, NONE, *cells, _tenths(one.l0), _whole(one.dictionary), NONE, style="dim")
    return table


def _explained(rows: Sequence[Row]) -> Table:
    columns: list[tuple[str, Callable[[Row], float | None], Format]] = [
        ("EVR", lambda r: r.evr, fraction),
        ("std", lambda r: r.evr_std, fraction),
        ("median", lambda r: r.evr_median, fraction),
        ("pooled", lambda r: r.evr_pooled, fraction),
        ("trained", lambda r: r.train_evr_pooled, fraction),
        ("MSE", lambda r: r.train_mse, scientific),
        ("L0", lambda r: r.train_l0, _tenths),
    ]
    table = open_table(("setup", False), ("seed", True), *((heading, True) for heading, _, _ in columns))
    _fill(table, rows, columns)
    return table


def _recovery(rows: Sequence[Row]) -> Table:
    names = {"MMCS": "mmcs", "random": "mmcs_random", "MCC": "mcc", "found": "found"}
    table = open_table(("setup", False), ("seed", True), *((heading, True) for heading in names))
    _fill(table, rows, [(h, lambda r, n=n: getattr(r, n), fraction) for h, n in names.items()])
    return table


def _diagnostics(rows: Sequence[Row]) -> Table:
    columns = {
        "winners": "winner_entropy",
        "Gini": "usage_gini",
        "norm": "norm_distance",
        "bias": "bias_drift",
        "anti": "anti_share",
        "cos MSE": "cos_mse",
        "cos L1": "cos_l1",
        "cos L2": "cos_l2",
    }
    table = open_table(("setup", False), ("seed", True), *((heading, True) for heading in columns))
    local = [row for row in rows if row.rule]
    _fill(table, local, [(h, lambda r, n=n: (r.rule or {}).get(n), fraction) for h, n in columns.items()])
    return table


def _alignment(rows: Sequence[Row]) -> Table:
    columns: list[tuple[str, Callable[[Row], float | None], Format]] = [
        (heading, lambda r, s=side, n=name: (r.alignment or {}).get(s, {}).get(n), fraction)
        for side in ("encoder", "decoder")
        for heading, name in ((side, "batch_cos"), ("token", "sample_cos"), ("step", "step_cos"))
    ]
    table = open_table(("setup", False), ("seed", True), *((heading, True) for heading, _, _ in columns))
    _fill(table, [row for row in rows if row.alignment], columns)
    return table


def _fill(
    table: Table, rows: Sequence[Row], columns: Sequence[tuple[str, Callable[[Row], float | None], Format]]
) -> None:
    """A line for each SAE; where a setup has several seeds, one of their means and one of its uncertainty."""
    for same in _by_setup(rows):
        whole = [row for row in same if not row.diverged]
        if len(same) == 1 or not whole:
            for row in same:
                cells = (form(value(row)) for _, value, form in columns)
                table.add_row(Text(visible(row.setup)), str(row.seed), *cells)
            continue
        means, halves = [], []
        for _, value, form in columns:
            one = estimate(value(row) for row in whole)
            means.append(form(one.mean if one else None))
            halves.append("" if one is None or one.half is None else form(one.half))
        table.add_row(Text(visible(same[0].setup)), f"×{len(whole)}", *means)
        table.add_row(Text("±", justify="right"), "", *halves, style="dim")


def _by_setup(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setup, []).append(row)
    return list(groups.values())


def _tenths(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _whole(value: float | int | None) -> str:
    return NONE if value is None else f"{value:,.0f}"
