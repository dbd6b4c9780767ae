"""The chapter's text, made from the trainings' numbers, beside the source's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hsae.figures import NONE, figure, percent
from hsae.lab.hybrid_lm.arms import ARMS, ORDERING
from hsae.lab.hybrid_lm.claims import SAME, Run, Runs, best, by_loss, claims, diverged, final, nats
from hsae.lab.hybrid_lm.training import PROMPT, SAMPLES, TEMPERATURE
from hsae.sharing.markdown import block, table


def parts(runs: Runs, arguments: dict[str, Any], text: str) -> Iterator[str]:
    """The chapter's parts, of what was trained, the arguments of the first, and the name of what was read."""
    yield from _setup(next(iter(runs["backprop"].values())), arguments, text)
    yield "## Three ways to learn"
    yield "![losses beside the source's, weights with their bound](hybrid-lm-curves.svg)"
    yield from _ordering(runs)
    yield "## What the source says, and what is so"
    yield (
        "Each row is a sentence of the source, or what one comes to. *here*: of the first seed, if nothing else is "
        "said; nothing is compared with arms that diverged."
    )
    rows = ((claim, theirs, ours, "yes" if so else "**no**") for claim, theirs, ours, so in claims(runs))
    yield table(("sentence", "the source's figures", "here", "so?"), rows)
    yield (
        "The bound is η_h ρ (1 - ρᵗ) / (1 - ρ) with ρ = 0.9999: there a weight goes whose product y x keeps its sign. "
        "As y = W x, larger weights make larger outputs and these larger weights, until W is the signs of one product."
    )
    if set(runs) - {*ORDERING, "bdh"}:
        yield "## All arms"
        yield from _all(runs)
    if bdh := runs["backprop"] if arguments["kind"] == "bdh" else runs.get("bdh"):
        run = next(iter(bdh.values()))
        loss = f"{nats(run['curve'][0]['loss'])} → {nats(final(run))}"
        x, y = (NONE if share is None else percent(share) for share in run["active"])
        yield "## BDH"
        yield (
            f"The source takes BDH's name, not its model. BDH itself, {run['parameters'] / 1e6:.3g} M parameters, by "
            f"AdamW for {run['curve'][-1]['step']:,} steps: validation loss {loss}. Of its codes x_s, y_s {x} and {y} "
            "are active; the paper (arXiv 2509.26507) says about 5%, at its size."
        )
    yield "## Samples"
    yield f'The first of {SAMPLES} texts from "{PROMPT}", at temperature {TEMPERATURE}, of the first seed.'
    for name in (name for name in (*ORDERING, "own", "bdh") if name in runs):
        run = next(iter(runs[name].values()))
        yield f"**{name}**\n\n" + block(run["samples"][0] if run["samples"] else diverged(run))


def _setup(run: Run, arguments: dict[str, Any], text: str) -> Iterator[str]:
    size, recipe = arguments["size"], arguments["recipe"]
    unit = "token" if arguments["text"]["tokenizer"] else "byte"
    read = f"{text}: {run['tokens'] / 1e6:.3g} M {unit}s of {run['vocabulary']:,}"
    rows = (
        ("model", f"{arguments['kind']}, {run['parameters'] / 1e6:.3g} M parameters", "gpt, 64.2 M"),
        ("width, heads, hidden, layers", f"{list(size.values())[:4]}"[1:-1], "512, 8, 1024, 6"),
        ("context, dropout", f"{size['context']} {unit}s, {size['dropout']}", "256 tokens, 0.1"),
        ("text", read, "TinyStories, tokens of 50,257"),
        ("steps × rows (last micro-batch)", "{steps:,} × {rows} ({micro})".format(**recipe), "5,000 × 32 (4)"),
        ("AdamW", "lr {lr:g}, decay {decay:g}".format(**recipe), "lr 0.0003, decay 0.01"),
    )
    yield table(("", "here", "the source"), rows)
    yield (
        "The rest is the source's, but that its rows are single stories, cut or padded; ours begin anywhere. Losses "
        f"are in nats per {unit}, ten times a training, on {recipe['held']} rows of stories that are not trained on"
        f"{'; in size they do not compare with nats per GPT-2 token' if unit == 'byte' else ''}."
    )


def _ordering(runs: Runs) -> Iterator[str]:
    rows = []
    for name in ORDERING:
        first, *_ = each = list(runs[name].values())
        zeros, known = first["sparsity"], first["coherence"] or {"words": 0.0, "pairs": 0.0}
        losses = [(nats(best(run)[0]), str(best(run)[1]), diverged(run) or nats(final(run))) for run in each]
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
    naive = [final(run) for run in runs["hybrid"].values()]
    bp = final(next(iter(runs["backprop"].values())))

    def verdict(name: str, loss: float) -> str:
        if name in ("hybrid", "backprop"):
            return ""
        if loss < bp + SAME:
            return "as backprop" if loss > bp - SAME else "below backprop"
        better = loss < min(naive) - SAME
        return "better than hybrid" if better else "as hybrid" if loss < max(naive) + SAME else "worse"

    def cells(name: str, run: Run) -> tuple[str, ...]:
        changed = ARMS[name].changed() if name in ARMS else {"": "as `--own` says"}
        words = ", ".join(f"{key} {value}".strip() for key, value in changed.items())
        if diverged(run):
            return f"`{name}`", words, nats(best(run)[0]), *[NONE] * 6, f"**{diverged(run)}**"
        point, loss = run["curve"][-1], final(run)
        losses = (nats(best(run)[0]), nats(loss), nats(loss - bp, "+"), nats(loss - naive[0], "+"))
        zeros = percent(run["sparsity"]["layers"])
        return f"`{name}`", words, *losses, figure(point["mean"]), figure(point["max"]), zeros, verdict(name, loss)

    yield "![the arms' best and last losses](hybrid-lm-arms.svg)"
    heads = ("arm", "changed", "best", "last", "- backprop", "- hybrid", "mean", "largest", "zeros", "verdict")
    yield table(heads, [cells(*each) for each in by_loss(runs)], "..rrrrrrr.")
    yield (
        f"One seed each; *mean* and *largest* weight, *zeros* of the layers. The naive hybrid's last loss over seeds: "
        f"{', '.join(map(nats, naive))}. What lies in that range, or within {SAME} of it, is *as hybrid*, and within "
        f"{SAME} of backpropagation's last *as backprop*. No rule's rate was tuned: all have the source's η_h = 0.001. "
        "The negative phase of `contrastive` is the same rows with their tokens shuffled."
    )
