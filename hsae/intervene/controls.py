"""What an ablation is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

FACTOR = 2.0
"""a latent of like firing rate fires at most so many times more or less often"""


def like_rate(
    firings: Int[np.ndarray, "latent"], latents: Sequence[int], count: int, seed: int
) -> dict[int, list[int]]:
    """For each latent, `count` random others of like firing rate, or as many as there are; none for one that is dead.

    They are drawn from those whose rate is within a factor of `FACTOR`; where these are too few, from the
    nearest. None is drawn twice, and none of `latents`.

    Args:
        firings: how often each latent of the dictionary fires.
        latents: the latents to compare with.
        count: how many.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    free = firings > 0
    free[list(latents)] = False
    found: dict[int, list[int]] = {}
    for latent in latents:
        if not firings[latent]:
            continue
        others = np.flatnonzero(free)
        far = np.abs(np.log(firings[others] / firings[latent]))
        near = others[np.argsort(far, kind="stable")][: max(count, int((far <= np.log(FACTOR)).sum()))]
        found[latent] = generator.permutation(near)[:count].tolist()
        free[found[latent]] = False
    return found
