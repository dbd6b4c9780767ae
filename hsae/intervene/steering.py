"""What a language model writes while latents are pushed: continuations of a prompt, beside the unchanged one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.errors import UserError
from hsae.evidence import Index
from hsae.intervene.edits import directions
from hsae.intervene.site import Head, Site
from hsae.intervene.writing import End, Watch, ignore, write

if TYPE_CHECKING:
    from rich.console import Console

Unit = Literal["max", "mean", "activation"]
FAR = 2.0
"""times the usual norm, above which an activation is off what the model knows"""


@dataclass(frozen=True)
class Pushed:
    """A latent that is pushed. `unit`: the activation that a strength of 1 stands for."""

    latent: int
    unit: float


@dataclass(frozen=True)
class Continuation:
    """What was written at one strength.

    Attributes:
        strength: in units; None for the unchanged model.
        tokens: ids of what was written; `text`: their pieces.
        end: why it ends: the number of tokens asked for, the end of the text, or the model's context limit.
        kl: mean KL(unchanged ‖ pushed) of the next token over the prompt's positions, all of them pushed, in nats.
        norm: the mean norm of the pushed activations there, as a multiple of the store's root mean square norm.
    """

    strength: float | None
    tokens: tuple[int, ...]
    text: tuple[str, ...]
    end: End
    kl: float | None
    norm: float | None


@dataclass(frozen=True)
class Steered:
    """Continuations of one prompt.

    Attributes:
        latents: what was pushed; with several, each by the strength times its own unit.
        clamp: they were set to the strength, instead of raised by it.
        prompt: ids of the prompt's tokens; `prompt_text`: their pieces.
        unchanged: what the model writes by itself.
        steered: what it writes at each strength.
        notes: what a reader should know, a line each.
    """

    head: Head
    latents: tuple[Pushed, ...]
    unit: Unit
    clamp: bool
    prompt_too: bool
    temperature: float
    prompt: tuple[int, ...]
    prompt_text: tuple[str, ...]
    unchanged: Continuation
    steered: tuple[Continuation, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Push:
    """Changes activations along latents' decoder directions, a row for each strength. The first row is never changed.

    Attributes:
        site: the model and the SAE.
        latents: the latents.
        amounts: what to add to the latents' activations in each row behind the first, or what to set them to.
        clamp: whether they are set.
    """

    site: Site
    latents: tuple[int, ...]
    amounts: Float[Tensor, "pushed some"]
    clamp: bool

    def __call__(
        self, tokens: Int[Tensor, "row position"], x: Float[Tensor, "row position width"], start: int
    ) -> tuple[Float[Tensor, "row position width"], Bool[Tensor, "row position"]]:
        """The changed activations, and where they are: from position `start` on, where the store would count."""
        where = self.site.counts(tokens, x)
        where[0], where[:, :start] = False, False
        more = self.amounts[where.nonzero()[:, 0] - 1]
        if self.clamp:
            more = more - self.site.sae.encode_latents(x[where], self.latents)
        new = x.clone()
        new[where] += (more @ directions(self.site.sae, self.latents)).to(x.dtype)
        return new, where


def steered(
    site: Site,
    latents: Sequence[int],
    prompt: str,
    strengths: Sequence[float] = (1.0,),
    unit: Unit = "max",
    clamp: bool = False,
    prompt_too: bool = False,
    tokens: int = 40,
    temperature: float = 0.0,
    sampling_seed: int = 0,
    index: Index | None = None,
    watch: Watch = ignore,
    console: Console | None = None,
) -> Steered:
    """Continue a prompt, with and without a push along latents' decoder directions.

    What predicts a written token is pushed: the prompt's last position, and every written one. All strengths are
    sampled with the same noise, so that what differs is due to the push.

    Args:
        site: the model and the SAE.
        latents: what to push.
        prompt: the text to go on from; it is tokenised and opened as the store's texts were.
        strengths: how hard, in units; below 0 pushes the other way.
        unit: 1 is the latent's highest activation on the store, its mean where it fires, or an activation of 1.
        clamp: set the latents to the strength, instead of adding it; 0 takes them out.
        prompt_too: push all of the prompt's positions.
        tokens: the most to write.
        temperature: of sampling; 0 takes the likeliest token.
        sampling_seed: of sampling.
        index: what the store says of every latent; None: `site.index()`, where the unit needs it.
        watch: told the token ids so far after every token, the unchanged model's first; it may raise to stop.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: no such latent, an empty prompt or one as long as the model's context, or a unit of 0.
    """
    latents, strengths = tuple(latents), tuple(map(float, strengths))
    site.require_latents(latents)
    ids, limit = site.encode_text(prompt), site.lm.context_limit
    if len(ids) >= limit:
        raise UserError(f"the prompt has {len(ids):,} tokens, {site.lm.name} takes {limit:,} at most; shorten it")
    units = _units(site, latents, unit, index, console)
    # A strength of 0 is the unchanged model, unless it is what the latents are set to.
    changing = [strength for strength in strengths if clamp or strength != 0]
    amounts = torch.tensor([[strength * one for one in units] for strength in changing]).view(-1, len(latents))
    push = Push(site, latents, amounts.to(site.lm.device), clamp)
    start = 0 if prompt_too else len(ids) - 1

    def edit(tokens: Tensor, x: Tensor) -> Tensor:
        return push(tokens, x, start)[0]

    rows = write(site.lm, site.hook, edit, ids, 1 + len(changing), tokens, temperature, sampling_seed, watch, console)
    measured = _on_prompt(site, push, torch.tensor([ids] * (1 + len(changing))))
    unchanged, *pushed = (
        Continuation(strength, row.tokens, _text(site, ids, row.tokens), row.end, kl, norm)
        for strength, row, (kl, norm) in zip((None, *changing), rows, measured, strict=True)
    )
    at = {one.strength: one for one in pushed}
    found = [at.get(strength, replace(unchanged, strength=strength)) for strength in strengths]
    return Steered(
        head=site.head,
        latents=tuple(Pushed(i, u) for i, u in zip(latents, units, strict=True)),
        unit=unit,
        clamp=clamp,
        prompt_too=prompt_too,
        temperature=temperature,
        prompt=tuple(ids),
        prompt_text=site.pieces(ids),
        unchanged=unchanged,
        steered=tuple(found),
        notes=(*site.notes, *_notes(site, [unchanged, *found])),
    )


def _units(
    site: Site, latents: tuple[int, ...], unit: Unit, index: Index | None, console: Console | None
) -> tuple[float, ...]:
    if unit == "activation":
        return (1.0,) * len(latents)
    index = index or site.index(console)
    values = index.maximum if unit == "max" else index.mean
    for latent in latents:
        if not values[latent] > 0:
            raise UserError(
                f"latent {latent} never fires on store {site.store.name}, so that its activation there is no unit; "
                "take --unit activation"
            )
    return tuple(float(values[latent]) for latent in latents)


def _text(site: Site, prompt: list[int], tokens: Sequence[int]) -> tuple[str, ...]:
    """The pieces of what was written, as they read behind the prompt."""
    return site.pieces([*prompt, *tokens])[len(prompt) :]


@torch.inference_mode()
def _on_prompt(site: Site, push: Push, tokens: Int[Tensor, "row position"]) -> list[tuple[float | None, float | None]]:
    """For each row the mean KL of the next token from the first row's, and the pushed activations' mean norm."""
    tokens = tokens.to(site.lm.device)
    norms: list[float | None] = []

    def edit(x: Tensor) -> Tensor:
        new, where = push(tokens, x, 0)
        for row, place in zip(new, where, strict=True):
            norms.append(float(row[place].norm(dim=-1).mean()) / site.usual_norm if place.any() else None)
        return new

    first, *others = site.lm.logits(tokens, site.hook, edit)
    base = first.log_softmax(-1)
    kl = [float((base.exp() * (base - row.log_softmax(-1))).sum(-1).mean()) for row in others]
    return list(zip((None, *kl), norms, strict=True))


def _notes(site: Site, found: list[Continuation]) -> list[str]:
    notes = [
        f"strength {one.strength:g}: the pushed activations are {one.norm:.1f} times as long as usual, off what the "
        "model knows"
        for one in found
        if one.strength is not None and one.norm is not None and one.norm > FAR
    ]
    if any(one.end == "context" for one in found):
        notes.append(f"cut at {site.lm.context_limit:,} tokens, the most that {site.lm.name} takes")
    return notes
