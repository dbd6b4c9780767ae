"""The text of every latent, to search in: its explanation, its tokens and its strongest contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from hsae.browse.catalogue import Catalogue

LIMIT = 4096
"""bytes of text kept for each latent: its tokens and 16 contexts of 32 ordinary tokens are about 2,500"""
BORDER = "\0"
"""between texts that do not follow one another, so that nothing is found across"""


class Words:
    """Explanations can be searched at once, the rest as far as it is read.

    Args:
        catalogue: whose latents.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._texts = [b""] * catalogue.latents
        for latent, explanation in catalogue.explanations.items():
            self._texts[latent] = explanation.text.casefold().encode(errors="replace")
        self.done = 0

    @property
    def whole(self) -> bool:
        """Whether all is read."""
        return self.done == len(self._texts)

    def read(self) -> Iterator[int]:
        """Read on, latent by latent: how many are done. Safe in a thread beside `find`; stops where it is left."""
        index = self._catalogue.index
        ids, parts = index.array("token_id"), index.array("token_offset").tolist()
        windows, cuts = index.array("top_tokens"), index.array("top_offset").tolist()
        for latent in range(self.done, len(self._texts)):
            tokens = [self._catalogue.token(i) for i in ids[parts[latent] : parts[latent + 1]].tolist()]
            contexts = [window[window >= 0].tolist() for window in windows[cuts[latent] : cuts[latent + 1]]]
            # One latent's contexts at a time: the text of hostile tokens cannot fill the memory.
            text = BORDER.join([*tokens, *self._decode(contexts)]).casefold().encode(errors="replace")
            self._texts[latent] = b"\0".join([self._texts[latent], text])[:LIMIT]
            self.done = latent + 1
            yield self.done

    def _decode(self, windows: Sequence[Sequence[int]]) -> list[str]:
        tokenizer = self._catalogue.subject.tokenizer
        if tokenizer is None:
            return ["".join(self._catalogue.pieces(window)) for window in windows]
        if hasattr(tokenizer, "decode_batch"):  # lets other threads run meanwhile
            return tokenizer.decode_batch(windows, skip_special_tokens=False)
        return [
            tokenizer.decode(window, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for window in windows
        ]

    def find(self, query: str) -> Bool[np.ndarray, "latent"]:
        """The latents whose number is `query`, or whose text has it; upper and lower case are the same."""
        needle = query.replace("⏎", "\n").replace("␣", " ").casefold().encode(errors="replace")
        found = np.fromiter((needle in text for text in self._texts), bool, len(self._texts))
        if query.strip().isdecimal() and int(query) < len(found):
            found[int(query)] = True
        return found
