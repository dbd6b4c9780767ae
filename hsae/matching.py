"""Which latent is which: directions of two dictionaries, and the best one-to-one assignment between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

EXACT = 64_000_000
"""entries of a similarity matrix up to which the assignment is exact: 8,000 by 8,000"""
CANDIDATES = 32
"""partners that a latent may have in a larger one: those most similar to it, and those that it is most similar to"""


@dataclass(frozen=True)
class Assignment:
    """Pairs (row, column) of a similarity matrix, in order of the rows; each row and each column at most once.

    `exact`: no one-to-one assignment has a higher sum. If not, none among the candidates has.
    """

    row: Int[Tensor, "pair"]
    column: Int[Tensor, "pair"]
    exact: bool


def directions(W: Float[Tensor, "latent width"]) -> Float[Tensor, "latent width"]:
    """Rows at unit norm, in float64 on the CPU, whatever their length; rows that are zero stay zero."""
    rows = W.detach().cpu().double()
    # By the largest entry first: the square of a tiny row would vanish.
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.nn.functional.normalize(rows, dim=1)


def assign(similarity: Float[Tensor, "row column"], exact: int = EXACT) -> Assignment:
    """The one-to-one assignment with the highest sum of similarities; all of the smaller side is assigned.

    Kuhn's Hungarian method, in the form of Jonker and Volgenant (scipy's `linear_sum_assignment`). Its time grows
    with the third power of the size, so a larger matrix is cut to the `CANDIDATES` of each row and column first (their
    sparse form of the method, `min_weight_full_bipartite_matching`); who finds no candidate free is assigned exactly
    among those left over.

    Args:
        similarity: finite, in [-1, 1].
        exact: entries up to which no candidates are chosen.
    """
    # Only this needs it, and it takes a while to import.
    from scipy.optimize import linear_sum_assignment

    if similarity.numel() <= exact:
        row, column = linear_sum_assignment(similarity.numpy(), maximize=True)
        return Assignment(torch.from_numpy(row).long(), torch.from_numpy(column).long(), exact=True)
    row, column = _among_candidates(similarity)
    rows, columns = _without(len(similarity), row), _without(similarity.shape[1], column)
    if len(rows) and len(columns):
        rest = assign(similarity[rows][:, columns], exact)
        row, column = torch.cat([row, rows[rest.row]]), torch.cat([column, columns[rest.column]])
    order = row.argsort()
    return Assignment(row[order], column[order], exact=False)


def _among_candidates(similarity: Float[Tensor, "row column"]) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"]]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, columns = similarity.shape
    nearest = similarity.topk(min(CANDIDATES, columns), 1).indices
    nearest_back = similarity.topk(min(CANDIDATES, rows), 0).indices
    every_row, every_column = torch.arange(rows), torch.arange(columns)
    # Each row has a column of its own behind the others, so that a full matching there is; it is worth next to nothing.
    row = torch.cat([every_row[:, None].expand_as(nearest).flatten(), nearest_back.flatten(), every_row])
    column = torch.cat([nearest.flatten(), every_column.expand_as(nearest_back).flatten(), columns + every_row])
    row, column = torch.stack([row, column]).unique(dim=1)
    real = column < columns
    worth = torch.full((len(row),), 1e-3, dtype=torch.float64)
    worth[real] = similarity[row[real], column[real]].double() + 2  # above 0, since a zero is no edge
    graph = csr_array((worth.numpy(), (row.numpy(), column.numpy())), shape=(rows, columns + rows))
    row, column = (torch.from_numpy(side).long() for side in min_weight_full_bipartite_matching(graph, maximize=True))
    return row[column < columns], column[column < columns]


def _without(count: int, taken: Int[Tensor, "some"]) -> Int[Tensor, "rest"]:
    free = torch.ones(count, dtype=torch.bool)
    free[taken] = False
    return free.nonzero().flatten()
