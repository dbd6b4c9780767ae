"""The tokens to compare on: the last of a store, and the metrics of SAEs over them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.errors import UserError
from hsae.metrics import Metrics, score
from hsae.sae import SAE
from hsae.store import Store

ROWS = 1024
"""tokens whose metrics are taken at a time"""


def first_sequence(store: Store, tokens: int) -> int:
    """The first of the store's last sequences that hold so many tokens."""
    return max(0, store.manifest.sequences - -(-tokens // store.manifest.context))


def rows_of(store: Store, hook: str, tokens: int) -> Float[Tensor, "token width"]:
    """Activations of a store's last tokens that count, at the store's scale.

    They are held in memory: 4 · width bytes for each.

    Args:
        store: the store.
        hook: a hook point of it.
        tokens: how many, rounded up to whole sequences; positions left out are among them.

    Raises:
        UserError: none of them counts.
    """
    chunks = store.chunks(hook, 64, first_sequence(store, tokens))
    rows = torch.cat([chunk.activations[chunk.keep] for chunk in chunks])
    if not len(rows):
        raise UserError(f"store {store.name}: no position of its last sequences counts; raise --tokens")
    return rows


@torch.inference_mode()
def measure(sae: SAE, rows: Float[Tensor, "token width"]) -> Metrics:
    """Metrics in the store's own units, whatever scale the SAE was trained at, so that they can be compared."""
    return score(sae.folded(), rows, ROWS)
