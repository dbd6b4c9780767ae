"""The model card: what was trained, how, on what, how well, and how to load it; made from the run alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence

from hsae.figures import NONE, fraction, scientific
from hsae.record import Baseline, Row
from hsae.sharing.contents import Published
from hsae.sharing.markdown import block, code, plain, table

TAGS = ("sparse-autoencoder", "sae", "mechanistic-interpretability", "interpretability", "hsae")


def card(run: Published, repository: str, license: str = "", formats: Mapping[str, Sequence[str]] | None = None) -> str:
    """A README.md with the metadata that the hub reads.

    Args:
        run: the run as others see it.
        repository: OWNER/NAME, for the commands; may be empty.
        license: the licence's name on the hub; empty: none.
        formats: other tools' formats that lie beside the run, each with its folders.
    """
    formats = formats or {}
    parts = [
        _metadata(run, license, formats),
        f"# {plain(run.record.name)}",
        _summary(run),
        _warnings(run),
        "## Use",
        _use(run, repository or f"OWNER/{run.record.name}"),
        _formats(formats),
        "## What was trained",
        _facts(run),
        _setups(run),
        "## Metrics",
        _metrics(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(run: Published, license: str, formats: Iterable[str]) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="hsae",
        license=license or None,
        tags=[*TAGS, *formats],
        base_model=run.base_model or None,
        datasets=list(run.datasets) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(run: Published) -> str:
    result = run.record.result
    setups = len({row.setup for row in run.rows})
    many = f"{len(run.rows)} sparse autoencoders ({setups} setups)" if len(run.rows) > 1 else "A sparse autoencoder"
    made = plain(result.origin) if result.origin else "trained with hsae, by backpropagation or by local Hebbian rules"
    return f"{many} of {result.latents:,} latents on {code(result.hook)} of {_model(run)}, {made}."


def _model(run: Published) -> str:
    return "the language model that comes with hsae" if run.model == "bundled" else code(run.model)


def _warnings(run: Published) -> str:
    lines = []
    for row in run.rows:
        name = f"{code(row.setup)}, seed {row.seed}"
        if row.diverged:
            lines.append(f"{name}: diverged {plain(row.diverged)}. It has no weights.")
        elif min(row.evr or 0, row.evr_pooled or 0) < 0:
            told = f"EVR {fraction(row.evr)}, pooled {fraction(row.evr_pooled)}"
            lines.append(f"{name}: {told}. Below 0 the mean activation reconstructs better.")
    return "> **Before you use it**\n" + "\n".join(f"> - {line}" for line in lines) if lines else ""


def _use(run: Published, repository: str) -> str:
    name, result = repository.partition("/")[2], run.record.result
    whole = next((row for row in run.rows if not row.diverged), None)
    parts = [block(f"hsae pull {shlex.quote(repository)}", "sh")]
    if whole is not None:
        chosen = f"{json.dumps(name)}, setup={json.dumps(whole.setup)}, seed={whole.seed}"
        parts.append(
            block(
                "import hsae\n\n"
                f"sae = hsae.load({chosen})  # W_enc and W_dec are [latent, width]\n"
                f"code = sae.encode(activations)  # [..., {result.width}] -> [..., {result.latents}]\n"
                "reconstruction = sae.decode(code)",
                "python",
            )
        )
        look = f"hsae inspect --run {shlex.quote(name)} --setup {shlex.quote(whole.setup)} --pick"
        if run.harvest:
            told = "Contexts need the activations: the run's config makes the very store that it was trained on."
            look = f"hsae harvest cache/runs/{shlex.quote(name)}/config.toml\n{look}"
        else:
            told = "Contexts need activations of the same model and hook point, harvested into a store."
            look += " --on STORE"
        parts += [told, block(look, "sh")]
    return "\n\n".join(parts)


def _formats(formats: Mapping[str, Sequence[str]]) -> str:
    if not formats:
        return ""
    rows = [[code(name), ", ".join(map(code, folders))] for name, folders in formats.items()]
    return "The same SAEs as other tools read them:\n\n" + table(["format", "folders"], rows)


def _facts(run: Published) -> str:
    result = run.record.result
    model = result.model
    built = [str(model["architecture"])] if model.get("architecture") else []
    sizes = ((model.get("layers"), "layers"), (model.get("width"), "wide"))
    built += [f"{count:,} {what}" for count, what in sizes if isinstance(count, int)]
    about = f" ({plain(', '.join(built))})" if built else ""
    revision = f", revision {code(str(model['revision']))}" if model.get("revision") else ""
    store = f"{code(run.store)}, fingerprint {code(result.store_fingerprint)}"
    if run.positions:
        store += f", {run.positions:,} tokens"
    data = ", ".join(map(code, run.data)) or "not told"
    scale = "activations as they are"
    if result.scale != 1:
        scale = f"multiplied by {result.scale:.6g} in training; `hsae.load` gives an SAE that takes them as they are"
    training = plain(result.origin) if result.origin else f"{result.steps:,} steps, {result.tokens:,} tokens"
    rows = [
        ["model", f"{_model(run)}{about}{revision}"],
        ["hook point", f"{code(result.hook)}, {result.width} wide"],
        ["text", data],
        ["activations", store],
        ["scale", scale],
        ["dictionary", f"{result.latents:,} latents"],
        ["training", training],
    ]
    return table(["", ""], rows)


def _setups(run: Published) -> str:
    def rule(part: object) -> str:
        return code(str(part["rule"])) if isinstance(part, dict) and "rule" in part else NONE

    rows = []
    for name, settings in run.record.tables.items():
        kind = settings.get("sae", {})
        values = ", ".join(f"{key} {value}" for key, value in kind.items() if key != "kind")
        sae = code(str(kind.get("kind", NONE))) + (f" ({plain(values)})" if values else "")
        decoder = "tied" if settings.get("tied") else rule(settings.get("decoder"))
        rows.append([code(name), rule(settings.get("encoder")), decoder, sae])
    told = f"All settings are in {code('config.toml')}; `hsae train config.toml` repeats the run."
    return table(["setup", "encoder's rule", "decoder's rule", "SAE"], rows) + f"\n\n{told}"


def _metrics(run: Published) -> str:
    result = run.record.result
    heads = ["setup", "seed", "MSE", "EVR", "EVR, pooled", "L1", "L0", "dictionary", "dead"]
    rows = [[code(row.setup), str(row.seed), *_numbers(row)] for row in run.rows]
    rows += [[plain(baseline.name), NONE, *_beaten(baseline)] for baseline in result.baselines]
    told = (
        f"Over {result.held_out:,} held-out tokens, at the scale of training. EVR: explained variance ratio, 1 minus "
        "the squared error over the variance; the mean of every token's, and of all tokens pooled. L1: the code's sum "
        "over the width. L0: active latents a token. Dictionary: latents that fire on any of these tokens. Dead: "
        f"latents that fired on none of the last {result.dead_window:,} training tokens."
    )
    beaten = " The lines without a seed are what an SAE must beat." if result.baselines else ""
    return f"{table(heads, rows, '.rrrrrrrr')}\n\n{told}{beaten}"


def _numbers(row: Row) -> Iterable[str]:
    if row.diverged:
        return ["diverged", *[NONE] * 6]
    counts = (f"{count:,}" if count is not None else NONE for count in (row.dictionary, row.dead))
    parts = (scientific(row.mse), fraction(row.evr), fraction(row.evr_pooled), scientific(row.l1), _l0(row.l0))
    return [*parts, *counts]


def _beaten(line: Baseline) -> Iterable[str]:
    parts = (scientific(line.mse), fraction(line.evr), fraction(line.evr_pooled), NONE, _l0(line.l0))
    return [*parts, f"{line.dictionary:,}", NONE]


def _l0(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"
