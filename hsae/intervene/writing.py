"""Writing on from a prompt, several rows side by side, with an edit at a hook point. No cache: every step reads all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.lm import LM
from hsae.progress import Bar

if TYPE_CHECKING:
    from rich.console import Console

End = Literal["tokens", "text", "context"]
Edit = Callable[[Tensor, Tensor], Tensor]
"""takes the tokens, [row, position], and the activations there; returns what stands in their place"""
Watch = Callable[[Tensor], None]
"""told the token ids so far, [row, position], prompt included, after every token; it may raise to stop"""


def ignore(_: Tensor) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Written:
    """Ids of what was written, without the token that ends a text; and why it ends."""

    tokens: tuple[int, ...]
    end: End


@torch.inference_mode()
def write(
    lm: LM,
    hook: str,
    edit: Edit,
    prompt: Sequence[int],
    rows: int,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    watch: Watch = ignore,
    console: Console | None = None,
) -> list[Written]:
    """Write on from a prompt.

    Args:
        lm: the model.
        hook: where its activations are changed.
        edit: how.
        prompt: token ids, shorter than the model's context limit.
        rows: how many continuations. They differ by what `edit` makes of each row.
        tokens: the most to write.
        temperature: 0 takes the likeliest token; else tokens are drawn (by Gumbel noise, the same for all rows).
        seed: of the noise.
        watch: told of every token.
        console: where to show progress; None shows nothing.
    """
    ids = torch.tensor([list(prompt)] * rows, device=lm.device)
    ends = {token for token in (lm.tokenizer.eos_token_id, lm.tokenizer.bos_token_id) if token is not None}
    generator = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in range(rows)]
    ended = [False] * rows
    room = min(tokens, lm.context_limit - len(prompt))
    with Bar(console, "write", room) as bar:
        for _ in range(room):
            logits = lm.logits(ids, hook, lambda x, ids=ids: edit(ids, x))[:, -1].float().cpu()
            token = _choose(logits, temperature, generator)
            for row, value in enumerate(token.tolist()):
                ended[row] = ended[row] or value in ends
                if not ended[row]:
                    written[row].append(value)
            bar.advance(1)
            if all(ended):
                break
            ids = torch.cat([ids, token[:, None].to(ids.device)], 1)
            watch(ids)
    short: End = "tokens" if room == tokens else "context"
    return [Written(tuple(row), "text" if done else short) for row, done in zip(written, ended, strict=True)]


def _choose(logits: Float[Tensor, "row entry"], temperature: float, generator: torch.Generator) -> Int[Tensor, "row"]:
    if not temperature:
        return logits.argmax(-1)
    noise = -torch.empty(logits.shape[1], dtype=torch.float64).exponential_(generator=generator).log()
    return (logits.double() / temperature + noise).argmax(-1)
