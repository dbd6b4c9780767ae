"""The statements that could explain a latent, and what each is worth on the half to explain from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hsae.interpret.examples import Contexts, Half
from hsae.interpret.features import STARTS, TAILS, Features
from hsae.interpret.rules import Clause, Shape, clause, keys

OWN = ("word", "part", "kind", "class", "initial", *(f"tail{n}" for n in TAILS))
BEHIND = ("previous", "second", "before", "place")
SHAPES: tuple[Shape, ...] = (
    *((name,) for name in (*OWN, *BEHIND, *(f"first{n}" for n in STARTS))),
    *((own, behind) for own in OWN for behind in BEHIND),
    ("previous", "second"),
    ("word", "previous", "second"),
)
"""shapes of the statements that are tried"""
WINDOWS = 48
"""windows that the latent happens to fire in that are used"""
KEPT = 12
"""statements of a shape that are kept"""


class Background:
    """The windows to explain from, which all latents share, read and sorted once.

    Args:
        features: of the windows.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.tables = {shape: _Table(keys(features, shape)) for shape in SHAPES}


class _Table:
    """Where each key of a shape stands: its windows, and how often it stands in each."""

    def __init__(self, key: Int[np.ndarray, "window token"]) -> None:
        window, flat = key.nonzero()[0], key[key > 0]
        order = np.lexsort((window, flat))
        flat, window = flat[order], window[order]
        new = (np.diff(flat, prepend=-1) != 0) | (np.diff(window, prepend=-1) != 0)
        at = np.flatnonzero(new)
        self.key, self.window = flat[at], window[at]
        self.count = np.diff(np.append(at, len(flat)))


class Lesson:
    """What there is to explain one latent from: its contexts and, beside them, the windows that it is silent in.

    Attributes:
        features, marked, silent: of its contexts; `count` of them.
        window: the context of each marked token; `share`: its weight, 1 for a context and 1 for all of them.
        quiet: which of the background's windows it is silent in; `detects`: whether it is in any.

    Args:
        half: its contexts.
        features: of `half.drawn` and then `half.top`.
        background: of `half.windows`.
    """

    def __init__(self, half: Half, features: Features, background: Background) -> None:
        self.background, self.quiet = background, half.quiet
        self.detects = bool(self.quiet.any())
        loud = np.flatnonzero(~half.quiet)[:WINDOWS]
        parts = (half.drawn, half.top, half.windows[loud])
        joined = Contexts(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("tokens", "code")))
        self.features = {name: np.concatenate([features[name], background.features[name][loud]]) for name in features}
        self.marked, self.silent, self.count = joined.marked, joined.silent, len(joined)
        self.window = self.marked.nonzero()[0]
        self.share = 1 / (self.marked.sum(1)[self.window] * self.count)


@dataclass(frozen=True)
class Candidates:
    """Statements.

    Attributes:
        found: which of the marked tokens each holds of.
        alarms: in which of the quiet windows it holds somewhere.
        noise: at what share of the tokens at which the latent is silent it holds: the mean of that in its own contexts
            and that in the quiet windows, where there are any.
    """

    clauses: list[Clause]
    found: Bool[np.ndarray, "candidate marked"]
    alarms: Bool[np.ndarray, "candidate window"]
    noise: Float[np.ndarray, "candidate"]


def candidates(lesson: Lesson) -> Candidates:
    """All statements worth a try."""
    parts = [_of_shape(lesson, shape) for shape in SHAPES]
    return Candidates(
        [one for part in parts for one in part.clauses],
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("found", "alarms", "noise")),
    )


def _of_shape(lesson: Lesson, shape: Shape) -> Candidates:
    """The best statements of a shape, by sorting: one pass, however many there are."""
    own = keys(lesson.features, shape)
    marked = own[lesson.marked]
    key, back = np.unique(marked, return_inverse=True)
    which = np.unique(back * lesson.count + lesson.window) // lesson.count
    count = np.bincount(which, minlength=len(key))
    recall = np.bincount(back, weights=lesson.share, minlength=len(key))
    table, windows = lesson.background.tables[shape], max(int(lesson.quiet.sum()), 1)
    first, last = np.searchsorted(table.key, key, "left"), np.searchsorted(table.key, key, "right")
    heard = lesson.quiet[table.window]
    alarm = _between(heard, first, last) / windows
    outside = _between(heard * table.count, first, last) / (windows * own.shape[1])
    beside = np.sort(own[lesson.silent])
    inside = np.searchsorted(beside, key, "right") - np.searchsorted(beside, key, "left")
    noise = inside / max(len(beside), 1)
    if lesson.detects:
        noise = (noise + outside) / 2
    quality = recall - noise + (count / lesson.count - alarm) * lesson.detects
    # A lone word that was met once is a fact; a lone combination is mostly an accident.
    least = 1 if shape in (("word",), ("part",)) else 2
    quality[(key == 0) | (count < least)] = -1
    best = np.argsort(-quality, kind="stable")[:KEPT]
    best = best[quality[best] > 0]
    alarms = np.zeros((len(best), len(lesson.quiet)), bool)
    for row, i in zip(alarms, best, strict=True):
        row[table.window[first[i] : last[i]]] = True
    clauses = [clause(shape, int(k)) for k in key[best]]
    return Candidates(clauses, marked == key[best][:, None], alarms[:, lesson.quiet], noise[best])


def _between(
    values: Int[np.ndarray, "row"] | Bool[np.ndarray, "row"],
    first: Int[np.ndarray, "key"],
    last: Int[np.ndarray, "key"],
) -> Int[np.ndarray, "key"]:
    """Sums of values in slices."""
    running = np.concatenate([[0], np.cumsum(values)])
    return running[last] - running[first]
