"""What a dictionary recovers of the directions that made the data: only data made on purpose has any.

Scores, all 0 … 1, over the cosines between the true directions and the dictionary's rows:

    MMCS         mean over true features of the highest cosine with any row. From Sharkey, Braun and Millidge, "Taking
                 features out of superposition with sparse autoencoders" (2022). Several features may share a row.
    MCC          mean cosine when each row may serve one feature only and each feature has one row: the best such
                 assignment (Kuhn's Hungarian method). The mean correlation coefficient of the ICA literature, on
                 directions. A feature that is left over counts 0.
    found        share of features with a row at a cosine above 0.9

Cosines keep their sign, and those below 0 count as 0: a code is never negative, so a row that points away is no match.
Rows that are exactly zero are not in the dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hsae.errors import UserError, one_line
from hsae.files import replacing
from hsae.matching import assign, directions
from hsae.store import Store

FILE = "truth.safetensors"
FORMAT = {"format": "hsae-truth-1"}
FOUND = 0.9
"""cosine above which a feature counts as found"""


@dataclass(frozen=True)
class Truth:
    """What made a store.

    Attributes:
        directions: of unit norm, one feature per row.
        rate: the probability that each feature fires on a token.
    """

    directions: Float[Tensor, "feature width"]
    rate: Float[Tensor, "feature"]

    @classmethod
    def of(cls, store: Store) -> Truth | None:
        """The truth that lies in a store's folder; None if there is none, as in every harvested store.

        Raises:
            UserError: the file is damaged, or of another store.
        """
        path = store.beside(FILE)
        if path is None:
            return None
        mend = "delete the store's folder and make it again"
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() != FORMAT:
                    raise UserError(f"{path}: not a file of true directions that this hsae reads; {mend}")
                directions, rate = file.get_tensor("directions"), file.get_tensor("rate")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged ({one_line(error)}); {mend}") from None
        widths = {record.width for record in store.manifest.hooks.values()}
        if directions.ndim != 2 or rate.shape != directions.shape[:1] or directions.shape[1] not in widths:
            shapes = f"directions {tuple(directions.shape)}, rate {tuple(rate.shape)}, width {sorted(widths)}"
            raise UserError(f"{path}: its shapes are not the store's ({shapes}); {mend}")
        # Not <= on the negation: a NaN fails every comparison.
        if not bool(((directions.norm(dim=1) - 1).abs() < 1e-3).all() and ((rate >= 0) & (rate <= 1)).all()):
            raise UserError(f"{path}: damaged (directions without unit norm, or rates that are none); {mend}")
        return cls(directions, rate)

    def write(self, folder: Path) -> None:
        """Write it into a store's folder, aside and renamed."""
        with replacing(folder / FILE) as aside:
            tensors = {"directions": self.directions.contiguous(), "rate": self.rate.contiguous()}
            aside.write_bytes(save(tensors, metadata=FORMAT))


@dataclass(frozen=True)
class Recovery:
    """How much of the truth a dictionary holds; see the top of this file. `live`: rows that are not zero."""

    mmcs: float
    mcc: float
    found: float
    live: int


def recovery(W_dec: Float[Tensor, "latent width"], truth: Truth) -> Recovery:
    """Scores of a dictionary, on the CPU, in any order and at any length of its rows.

    Args:
        W_dec: the decoder's directions; in the units of the directions or any other.
        truth: what made the data.
    """
    rows = directions(W_dec)
    rows = rows[rows.norm(dim=1) > 0]
    if len(rows) == 0:
        return Recovery(0.0, 0.0, 0.0, 0)
    cosine = (directions(truth.directions) @ rows.T).clamp_(0, 1)
    best = cosine.amax(1)
    found = assign(cosine, exact=cosine.numel())
    return Recovery(
        mmcs=best.mean().item(),
        mcc=cosine[found.row, found.column].sum().item() / len(cosine),
        found=(best > FOUND).double().mean().item(),
        live=len(rows),
    )
