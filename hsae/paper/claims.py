"""What the paper claims of its Table 1, checked on ours; and how metrics are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hsae.figures import fraction, scientific
from hsae.paper.published import SETUPS, TITLES

Values = Mapping[str, Mapping[str, float | None]]
"""setup → metric → number"""


@dataclass(frozen=True)
class Ordering:
    """A claim of the paper, and whether it holds here. `holds` is None where a setup has no numbers.

    `seeds`: for how many seeds, each by itself, of how many.
    """

    claim: str
    holds: bool | None
    numbers: str
    seeds: tuple[int, int]

    @property
    def verdict(self) -> str:
        """In words."""
        return "not measured" if self.holds is None else "holds" if self.holds else "does not hold"


Claim = tuple[str, str, tuple[str, ...], Callable[[Sequence[float]], bool]]
HEBBIAN = ("bp-dec", "hebb-tied")
CLAIMS: tuple[Claim, ...] = (
    ("MSE: BP < BP Dec < Hebb Tied", "mse", ("bp", *HEBBIAN), lambda v: v[0] < v[1] < v[2]),
    ("EVR: Hebb Tied < 0 < BP Dec < BP", "evr", ("bp", *HEBBIAN), lambda v: v[2] < 0 < v[1] < v[0]),
    ("EVR: BP Tied is far below BP (by more than .25)", "evr", ("bp", "bp-tied"), lambda v: v[0] - v[1] > 0.25),
    ("L1: BP has the smallest", "l1", SETUPS, lambda v: v[0] < min(v[1:])),
    ("L1: the Hebbian encoder has the largest", "l1", SETUPS, lambda v: v[3] > max(v[:2])),
    ("L0: BP Tied is the sparsest", "l0", SETUPS, lambda v: v[1] < min(v[0], v[2], v[3])),
    ("dictionary: the Hebbian encoder's is larger than BP's", "dictionary", ("bp", "hebb-tied"), lambda v: v[1] > v[0]),
    ("dictionary: BP Tied has the smallest", "dictionary", SETUPS, lambda v: v[1] < min(v[0], v[2], v[3])),
    ("L0: BP Dec and Hebb Tied share their encoder", "l0", HEBBIAN, lambda v: v[0] == v[1]),
)


def number(metric: str, value: float | None) -> str:
    """A metric in its own form."""
    if value is None:
        return "–"
    if metric in ("mse", "l1"):
        return scientific(value)
    if metric == "dictionary":
        return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"
    return fraction(value) if metric.startswith("evr") else f"{value:.1f}"


def orderings(means: Values, by_seed: Sequence[Values]) -> tuple[Ordering, ...]:
    """Every claim about Table 1, checked on means over seeds and on each seed by itself."""
    found = []
    for claim, metric, setups, test in CLAIMS:
        mean = _test(means, metric, setups, test)
        each = [_test(values, metric, setups, test) for values in by_seed]
        numbers = ", ".join(f"{TITLES[s]} {number(metric, means.get(s, {}).get(metric))}" for s in setups)
        found.append(Ordering(claim, mean, numbers, (sum(e is True for e in each), len(each))))
    return tuple(found)


def _test(values: Values, metric: str, setups: Sequence[str], test: Callable[[Sequence[float]], bool]) -> bool | None:
    numbers = [values.get(setup, {}).get(metric) for setup in setups]
    there = [n for n in numbers if n is not None]
    return test(there) if len(there) == len(numbers) else None
