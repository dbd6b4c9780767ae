"""The chapter's text, made from the trainings' numbers, beside the source's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hsae.figures import figure, percent
from hsae.lab.hybrid_lm.arms import ARMS, ORDERING, PARTS
from hsae.lab.hybrid_lm.claims import SAME, Runs, best, claims, final, nats
from hsae.lab.hybrid_lm.training import PROMPT, SAMPLES, TEMPERATURE
from hsae.sharing.markdown import block, table


def arms(runs: Runs) -> list[dict[str, Any]]:
    """Every arm's numbers at the first seed, by its last loss."""
    rows = []
    for name, run in ((name, next(iter(seeds.values()))) for name, seeds in runs.items() if name != "bdh"):
        weights = {key: run["curve"][-1][key] for key in ("mean", "max")}
        rows.append({"name": name, "best": best(run)[0], "final": final(run), **run["sparsity"], **weights})
    return sorted(rows, key=lambda row: (row["final"], row["name"]))


def body(runs: Runs, arguments: dict[str, Any], text: str) -> str:
    """The chapter.

    Args:
        runs: what was trained.
        arguments: of the first.
        text: the name of what was read.
    """
    return "\n\n".join(_parts(runs, arguments, text))


def _parts(runs: Runs, arguments: dict[str, Any], text: str) -> Iterator[str]:
    yield from _setup(next(iter(runs["backprop"].values())), arguments, text)
    yield "## Three ways to learn"
    yield "![validation loss by step, the source's and ours](hybrid-lm-curves.svg)"
    yield from _ordering(runs)
    yield "## What the source says, and what is so"
    yield (
        "Each row is a sentence of the source, or what one of its sentences comes to, and whether our figures bear it "
        "out. They are the first seed's where nothing else is said."
    )
    rows = ((claim, theirs, ours, "yes" if so else "**no**") for claim, theirs, ours, so in claims(runs))
    yield table(("sentence", "the source's figures", "here", "so?"), rows)
    yield (
        "The bound is η_h ρ (1 - ρᵗ) / (1 - ρ) with ρ = 0.9999: there a weight goes whose product y x keeps its sign. "
        "As y = W x, larger weights make larger outputs and these larger weights, until W is the signs of one outer "
        "product. The clamp bounds the speed alone; AdamW pulls against it at a rate that falls to 0."
    )
    yield "![mean weights and loss, by step](hybrid-lm-drift.svg)"
    if set(runs) - {*ORDERING, "bdh"}:
        yield "## All arms"
        yield from _all(runs)
    if bdh := runs["backprop"] if arguments["kind"] == "bdh" else runs.get("bdh"):
        yield "## BDH"
        yield _bdh(next(iter(bdh.values())))
    yield "## Samples"
    yield f'The first of {SAMPLES} texts from "{PROMPT}", at temperature {TEMPERATURE}, of the first seed.'
    hybrids = [name for name, arm in PARTS["repairs"].items() if arm.mode == "hybrid"]
    repairs = [row["name"] for row in arms(runs) if row["name"] in hybrids]
    for name in [*(name for name in (*ORDERING, "own", "bdh") if name in runs), *repairs[:1]]:
        sample = next(iter(runs[name].values()))["samples"]
        yield f"**{name}**" + (" (the hybrid repair that ends lowest)" if name in repairs else "")
        yield block(sample[0]) if sample else "The training broke: there is nothing to sample."


def _setup(run: dict[str, Any], arguments: dict[str, Any], text: str) -> Iterator[str]:
    size, recipe = arguments["size"], arguments["recipe"]
    unit = "byte" if not arguments["text"]["tokenizer"] else "token"
    sizes = ", ".join(str(size[key]) for key in ("width", "heads", "mlp", "layers"))
    steps = f"{recipe['steps']:,} × {recipe['rows']} ({recipe['micro']})"
    rows = (
        ("model", f"{arguments['kind']}, {run['parameters'] / 1e6:.3g} M parameters", "gpt, 64.2 M"),
        ("width, heads, hidden, layers", sizes, "512, 8, 1024, 6"),
        ("context, dropout", f"{size['context']} {unit}s, {size['dropout']}", "256 tokens, 0.1"),
        (
            "text",
            f"{text}: {run['tokens'] / 1e6:.3g} M {unit}s of {run['vocabulary']:,}",
            "TinyStories, tokens of 50,257",
        ),
        ("steps × rows (last micro-batch)", steps, "5,000 × 32 (4)"),
        ("AdamW", f"lr {recipe['lr']:g}, decay {recipe['decay']:g}", "lr 0.0003, decay 0.01"),
    )
    yield table(("", "here", "the source"), rows)
    yield (
        "The rest is the source's: cosine to 0 after a warm-up of 4% of the steps, gradients clipped at 1, η_h 0.001, "
        "δ clamped at ±1, weights × 0.9999 a step, Hebb on the q, k, v, o and MLP matrices, five calls of pruning. A "
        "row is a stretch from anywhere in the stories; the source's one story, cut or padded. Losses are validation "
        f"losses in nats per {unit}, on {recipe['held']} rows of stories that are not trained on, ten times a training"
        + ("; in size they do not compare with the source's, per GPT-2 token." if unit == "byte" else ".")
    )


def _ordering(runs: Runs) -> Iterator[str]:
    rows = []
    for name in ORDERING:
        each = list(runs[name].values())
        zeros, known = each[0]["sparsity"], each[0]["coherence"] or {"words": 0.0, "pairs": 0.0}
        losses = [(nats(best(run)[0]), str(best(run)[1]), nats(final(run))) for run in each]
        joined = map(" / ".join, zip(*losses, strict=True))
        rows.append((name, *joined, *map(percent, (zeros["all"], zeros["layers"], known["words"], known["pairs"]))))
    rows.append(("*source:* backprop", "1.279", "4000", "1.279", "8.26%", "42%", "coherent", ""))
    rows.append(("*source:* hybrid", "3.896", "3500", "4.278", "0.00%", "", "incoherent", ""))
    heads = ("", "best loss", "at step", "last loss", "zeros of all", "of the layers", "known words", "known pairs")
    yield table(heads, rows, ".rrrrrrr")
    yield (
        f"Losses of seeds {', '.join(map(str, runs['backprop']))}. *zeros*: weights below 1e-6, of all and of those "
        "that are pruned. *known*: of the samples' words, and of their pairs of words, those that occur in the "
        "training stories. Hebb alone changes neither embeddings nor output layer: random weights read what it makes."
    )


def _all(runs: Runs) -> Iterator[str]:
    rows = arms(runs)
    naive, bp = (next(row["final"] for row in rows if row["name"] == name) for name in ("hybrid", "backprop"))
    seeds = [final(run) for run in runs["hybrid"].values()]

    def verdict(row: dict[str, Any]) -> str:
        if row["name"] in ("hybrid", "backprop"):
            return ""
        if row["final"] < bp + SAME:
            return "as backprop" if row["final"] > bp - SAME else "below backprop"
        better = row["final"] < min(seeds) - SAME
        return "better than hybrid" if better else "as hybrid" if row["final"] < max(seeds) + SAME else "worse"

    def cells(row: dict[str, Any]) -> Iterator[str]:
        changed = ARMS[row["name"]].changed() if row["name"] in ARMS else {"": "as `--own` says"}
        yield f"`{row['name']}`"
        yield ", ".join(f"{key} {value}".strip() for key, value in changed.items())
        yield from (nats(row["best"]), nats(row["final"]))
        yield from (f"{row['final'] - of:+.3f}" if math.isfinite(row["final"]) else "" for of in (bp, naive))
        yield from (figure(row[key]) if row[key] is not None else "NaN" for key in ("mean", "max"))
        yield from (percent(row["layers"]), verdict(row))

    yield "![the arms' best and last losses](hybrid-lm-arms.svg)"
    heads = ("arm", "changed", "best", "last", "- backprop", "- hybrid", "mean", "largest", "zeros", "verdict")
    yield table(heads, map(tuple, map(cells, rows)), "..rrrrrrr.")
    yield (
        f"One seed each; *mean* and *largest* weight, *zeros* of the layers. The naive hybrid's last loss over seeds: "
        f"{', '.join(map(nats, seeds))}. What lies in that range, or within {SAME} of it, is *as hybrid*, and within "
        f"{SAME} of backpropagation's last *as backprop*. No rule's rate was tuned: all have the source's η_h = 0.001. "
        "The negative phase of `contrastive` is the same rows with their tokens shuffled."
    )


def _bdh(run: dict[str, Any]) -> str:
    curve, active = run["curve"], [percent(share) for share in run["active"]]
    return (
        f"The source takes BDH's name (arXiv 2509.26507), not its model. BDH itself, {run['parameters'] / 1e6:.3g} M "
        f"parameters, by AdamW for {curve[-1]['step']:,} steps: validation loss {nats(curve[0]['loss'])} → "
        f"{nats(final(run))}. Of its codes x_s, y_s {active[0]} and {active[1]} are active; the paper says about 5%, "
        "at its size. Its attention is a Hebbian memory, σ ← σ + x_s vᵀ, read by the next x_s; the parallel form that "
        "was trained equals it to rounding."
    )
