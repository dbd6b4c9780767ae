"""What four processes do that torchrun gives this file to: they share out dictionaries by latent.

It takes a folder with `tables.json`: for each shape of the grid, `[train]` tables. It trains them, and says in
`bytes.json` what each process held of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsae import training
from hsae.across import Peers, kth_highest
from hsae.dist import Grid, grid, shaped
from hsae.kernels.native import load
from hsae.kernels.softhebb import Competition, competition
from hsae.kernels.sparse import encode
from hsae.loop import Loop
from hsae.ranks import ALONE, Ranks
from hsae.rules.backprop import Backprop
from hsae.sae import Selection
from hsae.setup import Setup
from hsae.sparse_forward import highest
from hsae.start import PIECE, initial_weights
from hsae.trainconfig import TrainConfig

TOKENS, WIDTH = 40, 5


def drives() -> Iterator[Tensor]:
    """[token, latent]: in general position, full of ties, all alike, of all sizes, and few latents."""
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(TOKENS, 11, generator=generator)
    yield u
    yield (2 * u).round()
    yield torch.zeros(TOKENS, 11)
    yield u.abs() * 10.0 ** torch.arange(-20, 20)[:, None]
    yield torch.randn(TOKENS, 4, generator=generator).round()


def check_reductions(ranks: Ranks) -> None:
    """What `Peers` gives is this rank's share of what one process computes from all latents."""
    for u in drives():
        latents, here = u.shape[1], ranks.share(u.shape[1])
        peers, mine = Peers(ranks, latents), u[:, here].clone()
        assert (peers.whole(mine.shape[1]), peers.first) == (latents, here.start)
        assert peers.most(mine.shape[1]) == -(-latents // ranks.size)
        assert peers.count(mine[0] > 0) == int((u[0] > 0).sum())
        assert torch.equal(peers.join(mine.T), u.T)
        assert torch.equal(peers.largest(mine.amax(1)), u.amax(1))
        assert torch.equal(peers.collect(mine.T), mine.T if ranks.rank else u.T)
        assert torch.equal(peers.mine(u.T), mine.T)
        assert torch.equal(peers.sum(peers.once(u)), u)
        torch.testing.assert_close(peers.mean(mine[0]), u[0].mean())
        torch.testing.assert_close(peers.length(mine.norm()), u.norm())
        torch.testing.assert_close(peers.softmax(3 * mine), torch.softmax(3 * u, 1)[:, here], rtol=1e-6, atol=1e-12)
        check_ranking(peers, u, mine, here)
        check_products(peers, u, mine, here)
        whole = Grid(latent=ranks, everyone=ranks)
        for numbers in (u.abs(), u.abs().double()):
            for k in (1, 2, numbers.numel() // 2, numbers.numel()):
                assert kth_highest(numbers[:, here].flatten(), k, whole) == numbers.flatten().sort().values[-k]


def check_ranking(peers: Peers, u: Tensor, mine: Tensor, here: slice) -> None:
    order = u.sort(dim=1, descending=True, stable=True).indices
    for k in (1, 2, 3, 5, u.shape[1], u.shape[1] + 2):
        value, latent = peers.top(mine, k)
        stays = value > -torch.inf
        got = torch.zeros_like(mine).scatter_(1, latent, stays.float())
        assert torch.equal(got, torch.zeros_like(u).scatter_(1, order[:, :k], 1.0)[:, here])
        assert torch.equal(value[stays], mine.gather(1, latent)[stays])
        if k <= u.shape[1]:
            got = torch.zeros_like(mine)
            got[peers.ranked(mine, k)] = 1
            assert torch.equal(got, torch.zeros_like(u).scatter_(1, order[:, k - 1 : k], 1.0)[:, here])
    # Of some latents, such as dead ones, there may be none at a rank.
    value, _ = peers.top(mine[:, :0] if peers.ranks.rank else mine, 1)
    assert torch.equal(value, mine[:, :0] if peers.ranks.rank else mine.amax(1, keepdim=True))
    value, latent = peers.winner(mine)
    won = value[:, 0].isfinite()
    assert torch.equal(won, (order[:, 0] >= here.start) & (order[:, 0] < here.stop))
    assert torch.equal(latent[won, 0] + here.start, order[won, 0])


def check_products(peers: Peers, u: Tensor, mine: Tensor, here: slice) -> None:
    generator = torch.Generator().manual_seed(5)
    x, W = (torch.randn(count, WIDTH, generator=generator) for count in u.shape)
    for signed in (True, False):
        s = competition(u, 2.0, signed)
        torch.testing.assert_close(competition(mine, 2.0, signed, peers), s[:, here], rtol=1e-6, atol=1e-12)
        whole, part = Competition.of(u, x, 2.0, signed), Competition.of(mine, x, 2.0, signed, peers)
        torch.testing.assert_close(part.sx, whole.sx[here], rtol=1e-5, atol=1e-6)
    u, mine, x, W = u.double(), mine.double(), x.double(), W.double()
    torch.testing.assert_close(peers.addmm(x, mine, W[here], beta=-1, alpha=2), 2 * u @ W - x)
    torch.testing.assert_close(peers.left(x, mine, W[here]), x - u[:, : here.start] @ W[: here.start])


def check_sparse_codes(ranks: Ranks) -> None:
    """TopK by compiled code: of each rank's best entries, the best of all stay."""
    generator = torch.Generator().manual_seed(8)
    W, b = torch.randn(19, WIDTH, generator=generator), torch.zeros(19)
    # Equal rows, whose drives are ties, at several ranks.
    W[[1, 6, 12, 18]] = W[3].clone()
    x, here = torch.randn(TOKENS, WIDTH, generator=generator), ranks.share(19)
    for k in (1, 2, 4, 19):
        whole = encode(x, W, b, Selection(k=k), TOKENS * 19)
        code = encode(x, W[here].contiguous(), b[here], Selection(k=k), TOKENS * 19)
        assert code is not None
        assert whole is not None
        kept = highest(code, k, Peers(ranks, 19))
        torch.testing.assert_close(kept.dense(), whole.dense()[:, here])
        assert kept.count.tolist() == (kept.dense() > 0).sum(1).tolist()


def check_first_weights(ranks: Ranks) -> None:
    """Ranks start from the rows that one process draws, also where they draw in pieces."""
    for init in ("normal", "kaiming", "tied-safe"):
        setup = Setup(init=init, decoder=Backprop(), decoder_bias=True)
        for latents in (11, 2 * PIECE + 1700):
            whole, mine = (initial_weights(setup, 3, latents, 4, who) for who in (ALONE, ranks))
            here = ranks.share(latents)
            assert all(torch.equal(mine[name].W, weights.W[here]) for name, weights in whole.items())
            assert torch.equal(mine["encoder"].b, whole["encoder"].b[here])
            assert torch.equal(mine["decoder"].b, whole["decoder"].b)


def held_bytes(loop: Loop) -> int:
    """What a process's learners hold: weights, and their rules' states."""
    learners = loop.learners
    parts = [part for x in learners for part in (*(w.items() for w in x.weights.values()), *x.state.values())]
    return sum(value.numel() * value.element_size() for part in parts for value in part.values())


def main(folder: Path) -> None:
    tables = json.loads((folder / "tables.json").read_text())
    with grid() as world:
        shapes = {"four": shaped(4), "square": shaped(2)}
        for shape in shapes.values():
            check_reductions(shape.latent)
            check_first_weights(shape.latent)
            if load("sparse") is not None:
                check_sparse_codes(shape.latent)
        loops: list[Loop] = []

        class Kept(Loop):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                loops.append(self)

        training.Loop, held = Kept, {}
        for shape, ranks in shapes.items():
            training.grid = lambda latent_ranks, ranks=ranks: nullcontext(ranks)
            for table in tables[shape]:
                training.train(TrainConfig.from_table(table | {"latent_ranks": ranks.latent.size}, "test"))
                every = world.everyone.gather(torch.tensor([held_bytes(loops.pop())]))
                held[table["name"]] = [int(each) for each in every]
        if not world.everyone.rank:
            (folder / "bytes.json").write_text(json.dumps(held))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
