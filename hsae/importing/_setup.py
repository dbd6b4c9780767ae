"""What an imported SAE is in our words: a setup, and an SAE of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsae import config
from hsae.errors import UserError
from hsae.export._plain import Activation, Plain, plain
from hsae.importing._base import Foreign
from hsae.sae import SAE, Variant
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.gated import Gated
from hsae.sae.jumprelu import JumpReLU
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.setup import Setup


@dataclass(frozen=True)
class Made:
    """An imported SAE: its setup's name, seed and TOML table, itself, and what a reader should know."""

    name: str
    seed: int
    table: dict[str, Any]
    sae: SAE
    notes: tuple[str, ...]


# The setup's name where its own is not known.
NAME = "imported"


def make(foreign: Foreign) -> Made:
    """The setup and the SAE: those that `hsae export` wrote down, where it did; else what the function tells."""
    form = foreign.plain
    known = _known(foreign)
    if known is not None:
        setup, own = known, foreign.provenance
        tied = setup.tied and torch.equal(form.W_enc, form.W_dec)
        if tied or not setup.tied:
            sae = _sae(form, setup.variant, tied)
            return Made(str(own["setup"]), int(own["seed"]), config.table(setup), sae, ())
    variant = foreign.variant or _variant(form)
    # Those tools train by backpropagation. With which settings nobody wrote down, so none are claimed.
    table = {"encoder": "backprop", "decoder": "backprop", "sae": config.table(variant)}
    note = "how it was trained is not known; its setup says backprop, which is what the tool trains with"
    return Made(NAME, 0, table, _sae(form, variant, tied=False), (note,))


def _known(foreign: Foreign) -> Setup | None:
    """The setup that `hsae export` wrote beside an SAE; None without one, or with one that is not this SAE's."""
    own = foreign.provenance
    name, seed = own.get("setup"), own.get("seed")
    if not (
        isinstance(name, str)
        and re.fullmatch(r"[a-z0-9][a-z0-9-]*", name)
        and isinstance(seed, int)
        and 0 <= seed < 2**63
    ):
        return None
    try:
        setup = config.build(Setup, dict(own["settings"]), "the provenance beside it")
        back = plain(_sae(foreign.plain, setup.variant, tied=False))
    except (UserError, ValueError, TypeError, KeyError):
        return None
    return setup if _activation(back) == _activation(foreign.plain) and back.k == foreign.plain.k else None


def _activation(form: Plain) -> Activation:
    """Its activation function; a threshold of 0 is none."""
    return "relu" if form.threshold is not None and not form.threshold.any() else form.activation


def _variant(form: Plain) -> Variant:
    """A variant that computes the function. Penalties are of the training, which is not known: 0."""
    made: dict[Activation, Variant] = {
        "relu": ReLU(l1=0.0),
        "topk": TopK(k=form.k or 1),
        "jumprelu": JumpReLU(l0=0.0),
        "gated": Gated(l1=0.0),
    }
    return made[_activation(form)]


def _sae(form: Plain, variant: Variant, tied: bool) -> SAE:
    W_dec = form.W_enc if tied else form.W_dec
    return SAE(form.W_enc, form.b_enc, W_dec, form.b_dec, variant, 1.0, _parameters(form, variant))


def _parameters(form: Plain, variant: Variant) -> dict[str, Tensor]:
    """The variant's own parameters, from the form's."""
    if isinstance(variant, Gated) and form.log_gain is not None and form.magnitude_bias is not None:
        return {"log_gain": form.log_gain, "magnitude_bias": form.magnitude_bias}
    if isinstance(variant, BatchTopK) and form.threshold is not None:
        threshold = form.threshold[0]
        if not (form.threshold == threshold).all():
            raise ValueError("BatchTopK has one cut for all latents")
        # Active from the cut on, where a threshold must be exceeded. 0 is exceeded by the same drives in both.
        above = torch.nextafter(threshold, torch.full_like(threshold, torch.inf))
        return {"threshold": torch.where(threshold > 0, above, threshold)}
    if isinstance(variant, JumpReLU) and form.threshold is not None:
        return {"log_threshold": form.threshold.log()}
    return {}
