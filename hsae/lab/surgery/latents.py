"""Edits of single latents of a trained SAE, each a function from an SAE to another that shares what is not changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsae.sae import SAE


def per_latent(sae: SAE) -> dict[str, Tensor]:
    """All that an SAE has for each latent, by name; a tied one has no `W_dec`. The SAE's own tensors."""
    own = {name: value for name, value in sae.parameters.items() if value.ndim}
    decoder = {} if sae.W_dec is sae.W_enc else {"W_dec": sae.W_dec}
    return {"W_enc": sae.W_enc, "b_enc": sae.b_enc, **decoder, **own}


def with_tensors(sae: SAE, tensors: Mapping[str, Tensor]) -> SAE:
    """The SAE with other tensors in the place of some of `per_latent`; a tied one stays tied."""
    W_enc, b_enc = tensors.get("W_enc", sae.W_enc), tensors.get("b_enc", sae.b_enc)
    W_dec = W_enc if sae.W_dec is sae.W_enc else tensors.get("W_dec", sae.W_dec)
    own = {name: tensors.get(name, value) for name, value in sae.parameters.items()}
    return replace(sae, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, parameters=own)


def with_rows(sae: SAE, latents: Sequence[int], rows: Mapping[str, Tensor | float]) -> SAE:
    """The SAE with other rows for some latents; names that it does not have are passed over."""
    changed = {}
    for name, tensor in per_latent(sae).items():
        if name in rows:
            changed[name] = tensor.clone()
            changed[name][list(latents)] = torch.as_tensor(rows[name]).to(tensor)
    return with_tensors(sae, changed)


def empty(sae: SAE) -> Bool[Tensor, "latent"]:
    """Which latents were removed: their decoder rows are zero."""
    return ~sae.W_dec.any(1)


def removed(sae: SAE, latents: Sequence[int]) -> SAE:
    """Silence latents for ever: rows and bias are 0, so is the drive, and no variant's code is above 0 at a drive of 0.
    (No file of weights would survive a bias of -∞.)"""
    return with_rows(sae, latents, {"W_enc": 0.0, "b_enc": 0.0, "W_dec": 0.0})


def weighted(sae: SAE, latents: Sequence[int], factor: float) -> SAE:
    """Multiply what latents add to the reconstruction, on the tokens that they fire on already.

    Untied: the decoder's rows times the factor; codes do not change. Tied: row, bias, own parameters and code times
    √factor. (Where a tied SAE's latents compete for k places, some tokens change hands.)
    """
    some = list(latents)
    if sae.W_dec is not sae.W_enc:
        return with_rows(sae, some, {"W_dec": factor * sae.W_dec[some]})
    root = math.sqrt(factor)
    own = {name: value[some] for name, value in sae.parameters.items() if value.ndim}
    rows = {"W_enc": root * sae.W_enc[some], "b_enc": root * sae.b_enc[some]}
    return with_rows(sae, some, {**rows, **sae.variant.rescaled(own, 1 / root)})


def written(sae: SAE, latent: int, direction: Float[Tensor, "width"], used: Bool[Tensor, "latent"]) -> SAE:
    """Overwrite a latent: W_new = W + e_j (ρ t̂ - w_j)ᵀ, of rank 1. Norms, bias and own parameters: means of `used`."""
    unit = direction / direction.norm()
    rows = {name: tensor[used].mean(0) for name, tensor in per_latent(sae).items()}
    rows |= {name: unit * getattr(sae, name)[used].norm(dim=1).mean() for name in ("W_enc", "W_dec")}
    return with_rows(sae, [latent], rows)


def turned(sae: SAE, latent: int, direction: Float[Tensor, "width"]) -> SAE:
    """Point a latent's rows elsewhere; their norms and the bias stay."""
    unit = direction / direction.norm()
    return with_rows(sae, [latent], {name: getattr(sae, name)[latent].norm() * unit for name in ("W_enc", "W_dec")})


def without_directions(sae: SAE, latents: Sequence[int]) -> SAE:
    """Remove latents, and their directions from all others: W - (W T)Tᵀ, T an orthonormal base. Then W T = 0."""
    gone = removed(sae, latents)
    base = torch.linalg.qr(sae.W_dec[list(latents)].double().T).Q
    matrices = {"W_enc": gone.W_enc.double(), "W_dec": gone.W_dec.double()}
    return with_tensors(gone, {name: (W - (W @ base) @ base.T).to(sae.W_dec) for name, W in matrices.items()})


def inverse(before: SAE, after: SAE) -> dict[str, Tensor]:
    """What brings an edited SAE back bit for bit: `NAME` the rows that were there, `NAME.latents` whose they are."""
    kept = {}
    for (name, old), new in zip(per_latent(before).items(), per_latent(after).values(), strict=True):
        # Bit for bit: -0 is not 0.
        differs = (old != new) | (old.signbit() != new.signbit())
        differs = differs.any(1) if old.ndim > 1 else differs
        if differs.any():
            kept |= {name: old[differs], f"{name}.latents": differs.nonzero().flatten()}
    return kept


def restored(after: SAE, kept: Mapping[str, Tensor]) -> SAE:
    """The SAE before an edit, by `inverse`."""
    for name in per_latent(after):
        if name in kept:
            after = with_rows(after, kept[f"{name}.latents"].tolist(), {name: kept[name]})
    return after
