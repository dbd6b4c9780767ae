"""A text through the model and the SAE: which latents fire on which token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsae.intervene.site import Site


@dataclass(frozen=True)
class Active:
    """A latent that fires, and its activation."""

    latent: int
    activation: float


@dataclass(frozen=True)
class ReadToken:
    """A token of the text.

    Attributes:
        token: its id.
        text: its piece of the text.
        counts: False where the store would leave the position out; then no latent is said to fire.
        l0: how many latents fire.
        active: the strongest of them, strongest first.
    """

    token: int
    text: str
    counts: bool
    l0: int
    active: tuple[Active, ...]


@dataclass(frozen=True)
class ReadLatent:
    """A latent that fires somewhere in the text: `maximum` is its highest activation, at the token `peak`.

    `positions` are the tokens on which it fires, in order, and `activations` how strongly.
    """

    latent: int
    maximum: float
    peak: int
    positions: tuple[int, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class Reading:
    """A text read: token by token, and every latent that fires in it, the highest maximum first."""

    tokens: tuple[ReadToken, ...]
    latents: tuple[ReadLatent, ...]
    notes: tuple[str, ...]


@torch.inference_mode()
def read(site: Site, text: str, top: int = 10) -> Reading:
    """Which latents fire on which token of a text.

    The text is tokenised and opened as `hsae harvest` does it with a text that begins a row of the store, so the
    activations are those that the store would hold. It is cut to the length of the store's rows: beyond it the SAE has
    seen nothing.

    Args:
        site: the model and the SAE.
        text: what to read.
        top: the most latents to give for a token.

    Raises:
        UserError: the text is empty.
    """
    ids, context, notes = site.encode_text(text), site.store.manifest.context, []
    if len(ids) > context:
        notes.append(
            f"the text has {len(ids):,} tokens; the first {context:,} are read, as many as the store's rows have"
        )
        ids = ids[:context]
    tokens = torch.tensor([ids])
    x = site.lm.tap(tokens, (site.hook,))[site.hook]
    keep = site.counts(tokens, x)[0]
    code = site.sae.encode(x[0])
    code[~keep] = 0
    code = code.cpu()
    l0 = (code > 0).sum(1).tolist()
    values, latents = code.topk(min(top, code.shape[1]), dim=1)
    strongest = [
        tuple(Active(i, v) for i, v in zip(row, value, strict=True) if v > 0)
        for row, value in zip(latents.tolist(), values.tolist(), strict=True)
    ]
    pieces = site.pieces(ids)
    columns = zip(ids, pieces, keep.tolist(), l0, strongest, strict=True)
    return Reading(tuple(ReadToken(*column) for column in columns), _latents(code), tuple(notes))


def _latents(code: torch.Tensor) -> tuple[ReadLatent, ...]:
    maximum, peak = code.max(0)
    order = maximum.argsort(descending=True, stable=True)[: int((maximum > 0).sum())]
    found = []
    for latent in order.tolist():
        positions = code[:, latent].nonzero().flatten()
        values = code[positions, latent]
        found.append(
            ReadLatent(
                latent, float(maximum[latent]), int(peak[latent]), tuple(positions.tolist()), tuple(values.tolist())
            )
        )
    return tuple(found)
