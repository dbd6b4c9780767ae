"""The report in Markdown, beside its figures."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from hsae.figures import percent, scientific
from hsae.paper import PaperConfig
from hsae.paper.answers import answers
from hsae.paper.claims import orderings
from hsae.paper.findings import AblationPart, Findings, InitPart, TablePart, Trained
from hsae.paper.latents import Latent
from hsae.paper.measure import curve
from hsae.paper.plan import UNDERFLOW
from hsae.paper.published import (
    BATCH,
    MODEL,
    PATTERNS,
    SEEDS,
    SETUPS,
    STEPS,
    TITLES,
    TOKENS,
    VARIANCE,
)
from hsae.paper.tables import HEADS, ablation_rows, cell, diverged, init_rows, markdown_table, table_rows
from hsae.paper.wording import explanation


@dataclass(frozen=True)
class Source:
    """What was trained on: the store, its model, and the scale of its activations.

    `variance` is the store's per dimension, which `scale` brings to 5.6e-4.
    """

    store: str
    fingerprint: str
    tokens: int
    model: str
    architecture: str
    hook: str
    width: int
    variance: float
    scale: float

    @property
    def is_the_papers(self) -> bool:
        """Whether the model is the one the paper used."""
        return self.model.rstrip("/").rsplit("/", 1)[-1].lower() == MODEL.lower()


def command(settings: PaperConfig) -> str:
    """The command that makes this report."""
    words = ["hsae", "paper"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default or field.name == "scale":
            words += [f"--{field.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def markdown(settings: PaperConfig, source: Source, found: Findings) -> str:
    """The whole report."""
    parts: list[str] = [*_head(settings, source, found)]
    if found.table:
        parts += _table(found.table)
    if found.ablation:
        parts += _ablation(found.ablation)
    if found.init:
        parts += _init(found.init)
    asked = answers(found)
    if asked:
        parts += ["## What the paper leaves open", *(f"**{question}** {answer}" for question, answer in asked)]
    if found.latents is not None:
        parts += _latents(found.latents)
    return "\n\n".join(parts) + "\n"


def _head(settings: PaperConfig, source: Source, found: Findings) -> Iterator[str]:
    yield "# Hebbian learning through the lens of sparse autoencoders: a reproduction"
    yield (
        "Kurdiukov and Razzhigaev, 2025, reproduced by `hsae paper`. All text below is made from the measured numbers; "
        "`report.json` has them all."
    )
    yield f"    {command(settings)}"
    if source.is_the_papers:
        yield f"The model is the paper's, {MODEL}."
    else:
        yield (
            f"**This is not {MODEL}**: the activations are those of `{source.model}` ({source.architecture}). Numbers "
            "are beside the paper's for comparison; that they differ does not refute the paper's, that they agree "
            "does not confirm them."
        )
    rows = found.rows
    facts = [
        ("store", f"`{source.store}` ({source.fingerprint}), {source.tokens:,} tokens; the paper's has {TOKENS:,}"),
        ("hook point", f"`{source.hook}`, width {source.width}"),
        (
            "scale",
            f"activations times {source.scale:.4g}, from a variance per dimension of {source.variance:.4g} to 5.6e-4 "
            f"(the paper's, as its BP line implies it: {scientific(VARIANCE)})",
        ),
        (
            "held-out activations",
            f"{rows.tokens:,} tokens, median norm {rows.median_norm:.3f}, norm of the mean {rows.norm_of_mean:.3f}, "
            f"the longest {rows.heaviest:.1f} times the median; 1% of the tokens hold {percent(rows.top_share)} of the "
            "squared norm",
        ),
    ]
    for name, part in (("table", found.table), ("ablation", found.ablation), ("init", found.init)):
        if part is not None:
            facts.append((name, _length(part.trained)))
    facts.append(("the paper", f"{len(SETUPS)} setups × {SEEDS} seeds, {STEPS:,} steps × {BATCH:,} tokens"))
    yield "| what | |\n|---|---|\n" + "\n".join(f"| {name} | {fact} |" for name, fact in facts)


def _length(trained: Trained) -> str:
    train, tokens = trained.settings, trained.steps * trained.settings.batch_tokens
    return (
        f"{len(trained.arms)} setups × {len(train.seeds)} seed{'s' * (len(train.seeds) > 1)} "
        f"({', '.join(map(str, train.seeds))}), {trained.steps:,} steps × {train.batch_tokens:,} tokens = "
        f"{tokens / 1e6:.3g} M tokens each, {train.latents:,} latents; run `{trained.run.name}`"
    )


def _table(part: TablePart) -> Iterator[str]:
    trained = part.trained
    yield "## Table 1"
    arms = "; ".join(f"{TITLES[arm.base]} {arm.std:.3g}" for arm in trained.arms if arm.std)
    yield (
        f"Which scale of the initial weights the paper used is not stated. Here, standard deviations are: {arms}. Rows "
        "of norm 2 for SoftHebb, since from unit norm one latent can win all; unit norm for backpropagation."
    )
    yield (
        f"Mean (standard deviation) [95% t interval] over seeds. *held out*: over {trained.run.result.held_out:,} "
        "tokens that were never trained on, which is also the window in which the dictionary is counted (the paper's "
        "is a batch of 16,384). *train*: the same SAE over as many training tokens. *batches*: the last tenth of the "
        "logged training batches, before their update; so the paper measures, and its dictionary is that of one "
        f"batch, here of {trained.settings.batch_tokens:,} tokens."
    )
    yield markdown_table(("setup", "", *HEADS.values()), table_rows(trained))
    yield from diverged(trained)
    yield "### What the paper says of it"
    claims = orderings(trained.means(), trained.by_seed())
    yield "\n".join(
        f"- **{c.verdict}**: {c.claim}. {c.numbers}; by itself on {c.seeds[0]} of {c.seeds[1]} seeds." for c in claims
    )
    yield "### Over training"
    yield "![Figure 1: MSE, EVR and L1](losses.svg)"
    yield (
        "Figure 1. MSE, EVR and L1 of the training batches. BP Dec and Hebb Tied overlap in L1: they share their "
        "encoder. The axis of EVR is linear from -1 to 1 and logarithmic below. The paper leaves out BP Tied's wildest "
        "stretches; nothing is left out here."
    )
    yield "![Figure 2: L0 and dictionary](sparsity.svg)"
    yield "Figure 2. L0, and the latents that fire on a training batch."
    yield "![Figure 3: spread of EVR](spread.svg)"
    yield "Figure 3. Standard deviation over tokens of the per-token EVR."
    yield "![What the rule does](diagnostics.svg)"
    yield (
        "Figure 6 (ours). What SoftHebb does: who wins, how evenly latents are used, how far rows are from unit norm, "
        "how biases fall, and the cosine of its update, whole and by parts, with the descent of MSE, L1 and L2."
    )
    names = ("hebbian_cos_mse", "anti_cos_l1", "anti_cos_l2", "cos_mse")
    curves = {name: curve(trained.logged, "hebb-tied", f"rule.{name}") for name in names}
    cosines = {name: None if c is None else sum(c.mean) / len(c.mean) for name, c in curves.items()}
    if said := explanation(cosines):
        yield said
    if part.deciles:
        yield "![Error by token norm](norms.svg)"
        yield "Figure 7 (ours). The squared error and EVR by token norm, held-out tokens in ten parts, first seed."


def _ablation(part: AblationPart) -> Iterator[str]:
    trained = part.trained
    yield "## Ablation: PyTorch's default initialisation (the paper's A.4)"
    yield (
        "In the paper BP Tied recovers (EVR above .9) and the Hebbian setups become NaN. Here SoftHebb is trained "
        "twice: with its bias computed through logarithms, as this library does, and with the official code's "
        "arithmetic, which divides by e^(τb). `rate-1` is the official code's bias rate; `fast` is one so high that "
        f"the lowest bias should pass {UNDERFLOW:.3f}, where e^(τb) is 0 in float32, half-way through; `literal` "
        "starts (from normal weights) at the bias that the appendix prints."
    )
    yield markdown_table(("setup", "what", *HEADS.values(), "lowest bias", "underflow"), ablation_rows(part))
    yield from diverged(trained)
    yield "![Figure 4: MSE, EVR and L1 from the default initialisation](ablation-losses.svg)"
    yield "Figure 4. As Figure 1, from PyTorch's default initialisation, with the logarithmic bias."
    yield "![Figure 5: L0 and dictionary from the default initialisation](ablation-sparsity.svg)"
    yield "Figure 5. As Figure 2, from PyTorch's default initialisation."
    if part.falls:
        yield "![The lowest bias](bias.svg)"
        yield "Figure 8 (ours). How the lowest bias falls."


def _init(part: InitPart) -> Iterator[str]:
    trained = part.trained
    yield "## The scale of the initial weights"
    yield (
        "Held-out means over seeds. *start*: L0 and dictionary before the first step. *distance* from the paper's "
        "line: mean of |log10 ratio| of MSE, L1, L0 and dictionary and of |difference| of EVR (cut at 3)."
    )
    heads = ("setup", "what", "row norm", "start L0", "start dict", *HEADS.values(), "distance")
    yield markdown_table(heads, init_rows(part))
    yield from diverged(trained)
    yield "![Final metrics against the initial scale](init.svg)"
    yield "Figure 9 (ours). Final metrics against init_std. Dotted: the paper's."


def _latents(found: dict[str, tuple[Latent, ...]]) -> Iterator[str]:
    yield "## What latents mean (the paper's Tables 2 and 3)"
    yield (
        "The most selective latents of the first seed, each about another token: those whose strongest contexts peak "
        "on one token. *share*: of the latent's firings, those on its commonest token. The paper chose its examples by "
        "hand, on NeelNanda/pile-10k; these are chosen by that rule, on the store itself."
    )
    for setup, latents in found.items():
        yield f"### {TITLES[setup]}"
        theirs = "; ".join(f"{latent}: {pattern}" for latent, pattern in PATTERNS[setup])
        yield f"The paper's: {theirs}."
        if not latents:
            yield "No latent fires in enough sequences to be judged."
            continue
        rows = (
            (
                str(latent.latent),
                cell(latent.token),
                f"{latent.share:.0%}",
                f"{latent.selectivity:.0%}",
                percent(latent.rate),
                " <br> ".join(cell(context) for context in latent.contexts),
            )
            for latent in latents
        )
        yield markdown_table(("latent", "token", "share", "selectivity", "fires on", "contexts"), rows)
