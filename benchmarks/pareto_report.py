"""The table and the figure of `pareto.py`'s runs, measured on a store that nothing was trained or chosen on.

    python benchmarks/pareto_report.py stories260k --test stories260k-valid

Settings were chosen by looking at the training store's held-out tokens, so those favour whatever was tuned most; the
test store's text is of another split. Writes docs/pareto/README.md's table (table.md), results.json and pareto.svg.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from hsae.files import cache_root
from hsae.intervals import Estimate, estimate
from hsae.metrics import score
from hsae.run import RESULT, Run
from hsae.store import Store

L0S = (4, 8, 16, 32)
COMPARED = ("topk", "local", "relu", "auxk")
TITLES = {
    "relu": "ReLU-L1, backpropagation",
    "topk": "TopK, backpropagation",
    "topk-auxk": "TopK + aux-k, backpropagation",
    "residual-hebb": "residual-hebb, local",
}


@dataclass(frozen=True)
class Point:
    """One SAE: its L0 and pooled EVR on the test tokens and on the training store's held-out ones; dead latents."""

    setup: str
    seed: int
    wanted: int | None
    l0: float
    evr: float
    held_out: float
    dead: int


def points(store: str, steps: int, rows: torch.Tensor) -> Iterator[Point]:
    """Every SAE of the finished runs."""
    for folder in sorted((cache_root() / "runs").glob(f"pareto-{store}-{steps}-*")):
        part = folder.name.removeprefix(f"pareto-{store}-{steps}-").split("-")[0]
        if part not in COMPARED or not (folder / RESULT).exists():
            continue
        run = Run(folder)
        wanted = int(folder.name.rsplit("-", 1)[1]) if "-l0-" in folder.name else None
        for row in run.result.rows:
            if row.diverged or row.l0 is None or row.evr_pooled is None:
                continue
            # Scores are taken at the training scale, as the table's are; EVR does not depend on it.
            sae = replace(run.sae(row.setup, row.seed), scale=1.0)
            found = score(sae, rows * run.result.scale, 512)
            yield Point(row.setup, row.seed, wanted, found.l0, found.evr_pooled, row.evr_pooled, row.dead or 0)


def at(curve: list[tuple[float, float]], l0: float) -> float | None:
    """EVR at an L0 on a curve of (L0, EVR), linear in log L0; None outside it."""
    curve = sorted(curve)
    for (a, low), (b, high) in pairwise(curve):
        if a <= l0 <= b:
            share = (math.log(l0) - math.log(a)) / (math.log(b) - math.log(a))
            return low + share * (high - low)
    return None


def table(found: list[Point]) -> dict[str, dict[int, tuple[Estimate | None, Estimate | None, Estimate | None]]]:
    """For each setup and L0: EVR on the test tokens, on the held-out tokens, and dead latents."""
    lines: dict[str, dict[int, tuple[Estimate | None, Estimate | None, Estimate | None]]] = {}
    for setup in ("topk", "topk-auxk", "residual-hebb"):
        lines[setup] = {}
        for l0 in L0S:
            here = {p.seed: p for p in found if p.setup == setup and p.wanted == l0}.values()
            columns = ([p.evr for p in here], [p.held_out for p in here], [p.dead for p in here])
            lines[setup][l0] = (estimate(columns[0]), estimate(columns[1]), estimate(columns[2]))
    sweep = [p for p in found if p.setup.startswith("relu-")]
    seeds = sorted({p.seed for p in sweep})
    lines["relu"] = {}
    for l0 in L0S:
        test = [at([(p.l0, p.evr) for p in sweep if p.seed == seed], l0) for seed in seeds]
        held = [at([(p.l0, p.held_out) for p in sweep if p.seed == seed], l0) for seed in seeds]
        lines["relu"][l0] = (estimate(test), estimate(held), None)
    return lines


def markdown(lines: dict[str, dict[int, tuple[Estimate | None, Estimate | None, Estimate | None]]]) -> str:
    """The table: mean ± half the 95% interval over seeds."""
    text = "| | " + " | ".join(f"L0 {l0}" for l0 in L0S) + " |\n|---|" + "---|" * len(L0S) + "\n"
    for setup, title in TITLES.items():
        for column, what in ((0, "test"), (1, "held out"), (2, "dead latents")):
            cells = []
            for l0 in L0S:
                one = lines.get(setup, {}).get(l0, (None, None, None))[column]
                cells.append("–" if one is None else _cell(one, column == 2))
            if any(cell != "–" for cell in cells):
                text += f"| {title if column == 0 else ''} ({what}) | " + " | ".join(cells) + " |\n"
    return text


def _cell(one: Estimate, whole: bool) -> str:
    mean = f"{one.mean:,.0f}" if whole else f"{one.mean:.4f}"
    half = "" if one.half is None else f" ± {one.half:,.0f}" if whole else f" ± {one.half:.4f}"
    return f"{mean}{half} ({one.count})"


def figure(found: list[Point], baselines: dict[str, float], path: Path) -> None:
    """EVR on the test tokens against L0."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hsae", "font.size": 9, "axes.spines.top": False})
    from matplotlib import pyplot as plt

    looks = {
        "relu": ("#7f7f7f", "s", "--"),
        "topk": ("#0072b2", "o", "-"),
        "topk-auxk": ("#56b4e9", "^", ":"),
        "residual-hebb": ("#d55e00", "D", "-"),
    }
    figure, (wide, near) = plt.subplots(1, 2, figsize=(9.5, 4.2), width_ratios=(3, 2))
    for setup, (colour, marker, line) in looks.items():
        here = [p for p in found if p.setup == setup or (setup == "relu" and p.setup.startswith("relu-"))]
        groups: dict[str, list[Point]] = {}
        for p in here:
            groups.setdefault(f"{p.setup} {p.wanted}", []).append(p)
        means = sorted((sum(p.l0 for p in g) / len(g), sum(p.evr for p in g) / len(g)) for g in groups.values())
        for axes in (wide, near):
            axes.scatter([p.l0 for p in here], [p.evr for p in here], s=14, color=colour, marker=marker, alpha=0.6)
            axes.plot([m[0] for m in means], [m[1] for m in means], line, color=colour, label=TITLES[setup])
    ranks = sorted((int(n.split("-")[1]), evr) for n, evr in baselines.items() if n.startswith("pca-"))
    wide.plot(*zip(*ranks, strict=True), "-.", color="#009e73", label="PCA (components; held-out tokens)")
    for name, evr in baselines.items():
        if name.startswith("k-means"):
            wide.axhline(evr, color="#cc79a7", linewidth=1, label=f"{name} (L0 1; held-out tokens)")
    wide.set_ylim(0.1, 1.0)
    near.set_ylim(0.89, 0.975)
    for axes in (wide, near):
        axes.set_xscale("log", base=2)
        axes.set_xticks(L0S, [str(l0) for l0 in L0S])
        axes.set_xlim(3.5, 40)
        axes.set_xlabel("L0")
        axes.grid(color="#dddddd", linewidth=0.5)
    wide.set_ylabel("pooled EVR, test tokens")
    wide.legend(frameon=False, fontsize=7.5, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--test", required=True, help="store to measure on")
    parser.add_argument("--steps", type=int, default=362)
    parser.add_argument("--out", type=Path, default=Path("docs/pareto"))
    args = parser.parse_args()
    test = Store.open(args.test)
    hook, _ = test.hook()
    rows = torch.cat([chunk.activations[chunk.keep] for chunk in test.chunks(hook, 64)])
    found = list(points(args.store, args.steps, rows))
    lines = table(found)
    baselines = {}
    for path in (cache_root() / "runs").glob(f"pareto-{args.store}-{args.steps}-*/{RESULT}"):
        if path.parent.name.removeprefix(f"pareto-{args.store}-{args.steps}-").split("-")[0] not in COMPARED:
            continue
        baselines |= {b.name: b.evr_pooled for b in Run(path.parent).result.baselines if b.evr_pooled is not None}
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(lines)
    print(f"{len(rows):,} test tokens of {test.name}\n\n{text}")
    (args.out / "table.md").write_text(text, encoding="utf-8")
    data = {"test_tokens": len(rows), "points": [vars(p) for p in found], "baselines": baselines}
    (args.out / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    figure(found, baselines, args.out / "pareto.svg")


if __name__ == "__main__":
    main()
