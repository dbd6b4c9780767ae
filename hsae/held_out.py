"""The tokens that nothing is trained on: the last of a store's sequences, whole."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.errors import UserError
from hsae.store import Store


def held_out_sequences(store: Store, tokens: int) -> int:
    """How many of a store's last sequences are held out, for so many tokens.

    Raises:
        UserError: that would be all of them.
    """
    held_out, there = -(-tokens // store.manifest.context), store.manifest.sequences
    if held_out >= there:
        raise UserError(
            f"store {store.name} has {there} sequences, {held_out} of them would be held out: "
            "harvest more, or lower --held-out"
        )
    return held_out


def held_out_rows(store: Store, hook: str, tokens: int) -> Float[Tensor, "token width"]:
    """The activations that count of the held-out sequences, up to so many, at the store's scale.

    Raises:
        UserError: all sequences would be held out, or none of those that are has a position that counts.
    """
    end = store.manifest.sequences
    first = end - held_out_sequences(store, tokens)
    found: list[Tensor] = []
    for chunk in store.chunks(hook, 64, first, end):
        found.append(chunk.activations[chunk.keep])
        if sum(map(len, found)) >= tokens:
            break
    rows = torch.cat(found)[:tokens]
    if len(rows) == 0:
        raise UserError(
            f"store {store.name}: no position of the sequences {first} to {end - 1} counts; change --held-out"
        )
    return rows
