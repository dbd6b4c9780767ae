"""Whether an index is one: its arrays fit each other, and what an offset or an id points at is there."""

from __future__ import annotations

import numpy as np

from hsae.evidence.file import Arrays
from hsae.evidence.latent import WINDOW

# Array -> its shape. A word stands for the same number everywhere; `latent+1` are offsets, from 0 to the last word's.
SHAPES = {
    "rows": "1",
    "occurrences": "vocabulary",
    **dict.fromkeys(("firings", "total", "maximum", "bin_width", "token_doubt"), "latent"),
    "histogram": "latent bin",
    **dict.fromkeys(("near", "near_cosine"), "latent near"),
    **dict.fromkeys(("coactive", "coactive_phi", "coactive_share"), "latent coactive"),
    **dict.fromkeys(("token_id", "token_firings", "token_mass"), "token"),
    **{f"{kind}_{name}": kind for kind in ("top", "sample") for name in ("sequence", "position")},
    **{f"{kind}_{name}": f"{kind} {WINDOW}" for kind in ("top", "sample") for name in ("tokens", "code")},
    "random_tokens": f"random {WINDOW}",
    **dict.fromkeys(("random_window", "random_place", "random_value"), "entry"),
    **{f"{kind}_offset": "latent+1" for kind in ("top", "sample", "token", "random")},
}
LOGITS = dict.fromkeys(("promoted", "promoted_logit", "suppressed", "suppressed_logit"), "latent logit")
FLOATS = ("total", "maximum", "width", "doubt", "cosine", "phi", "share", "mass", "code", "value", "logit")
# Offsets -> an array whose rows they count.
COUNTED = {"top": "top_sequence", "sample": "sample_sequence", "token": "token_id", "random": "random_window"}
# Array of numbers -> the word that they are below. -1 stands for none where that is said.
BELOW = {"near": "latent", "coactive": "latent", "token_id": "vocabulary", "random_window": "random"}


def fault(file: Arrays) -> str:
    """What is wrong with the arrays of an index's file; empty: nothing."""
    shapes = SHAPES | (LOGITS if "promoted" in file else {})
    if lacking := [name for name in shapes if name not in file]:
        return f"it has no {lacking[0]}"
    sizes: dict[str, int] = {}
    for name, words in shapes.items():
        kind, found = file.form(name)
        if kind != ("f" if name.endswith(FLOATS) else "i"):
            return f"{name} holds numbers of another kind"
        if len(found) != len(words.split()):
            return f"{name} has {len(found)} dimensions"
        for word, size in zip(words.split(), found, strict=True):
            size -= word.endswith("+1")
            word = word.removesuffix("+1")
            if size != (int(word) if word.isdecimal() else sizes.setdefault(word, size)):
                return f"{name} does not fit the other arrays"
    for kind, counted in COUNTED.items():
        offset = file.array(f"{kind}_offset")
        if offset[0] != 0 or offset[-1] != file.form(counted)[1][0] or (np.diff(offset) < 0).any():
            return f"{kind}_offset does not count the rows of {counted}"
    for name, word in BELOW.items():
        least = -1 if name in ("near", "coactive") else 0
        if not _within(file.array(name), least, sizes[word]):
            return f"{name} points at what is not there"
    if not _within(file.array("random_place"), 0, WINDOW):
        return "random_place points at what is not there"
    return _odd(file)


def _within(values: np.ndarray, least: int, below: int) -> bool:
    return bool(((values >= least) & (values < below)).all())


def _odd(file: Arrays) -> str:
    """What no pass over a store can have found."""
    firings, total, maximum, width = (file.array(n) for n in ("firings", "total", "maximum", "bin_width"))
    if (firings < 0).any() or (file.array("occurrences") < 0).any() or file.array("rows")[0] < 0:
        return "firings are no counts"
    if not all(np.isfinite(values).all() and (values >= 0).all() for values in (total, maximum, width)):
        return "activations that are negative or not finite"
    if ((firings > 0) & (total == 0)).any() or (np.diff(file.array("token_offset"))[total == 0] > 0).any():
        return "latents that fire without an activation"
    if ((width > 0) & (maximum > 1e6 * np.maximum(width, 1e-300))).any():
        return "bin_width does not fit maximum"
    return ""
