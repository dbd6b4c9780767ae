"""Several real processes for a test: `torchrun … -m hsae`; and what three do that torchrun gives this file to."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from hsae import loop, training
from hsae.across import Peers
from hsae.dist import Grid, grid, shaped
from hsae.errors import Elsewhere, UserError
from hsae.learner import Learner
from hsae.memory import OutOfMemory
from hsae.ranks import Ranks
from hsae.trainconfig import TrainConfig

SHORT: dict[str, Any] = {
    "store": "planted",
    "latents": 48,
    "batch_tokens": 127,
    "held_out": 256,
    "steps": 6,
    "baselines": False,
    "setups": ["bp", "cut"],
    "setup": {
        "cut": {
            "encoder": "softhebb",
            "decoder": "backprop",
            "sae": {"kind": "batchtopk", "k": 2.5},
            "init_gain": True,
            "revive": {"kind": "resample", "every": 2, "tokens": 200},
        }
    },
}
"""a training in which memory runs out at every place where it can"""
PLACES = {"begin": Learner, "statistics": Learner, "update": Learner, "revive": Learner}
"""methods of a learner in which it does"""
SHARING = {"addmm": Peers, "join": Peers} | PLACES
"""the same, where a dictionary is shared out: also in the middle of a micro-batch"""


def torchrun(processes: int, *words: str, program: tuple[str, ...] = ("-m", "hsae")) -> subprocess.Popen[str]:
    """Processes that torchrun starts and ends; not waited for."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return subprocess.Popen(
        (*launch, "--max-restarts", "2", *program, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


def ended(process: subprocess.Popen[str], seconds: float = 400) -> tuple[str, str]:
    """What a process printed, once it has ended. It does not outlive the test."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun hands it on
        out, error = process.communicate(timeout=60)
        raise AssertionError(f"still running after {seconds} s:\n{out}\n{error}") from None


def _messages(ranks: Ranks) -> None:
    """What `Group` promises, at three ranks."""
    rank, third = ranks.rank, torch.arange(7, dtype=torch.float64) / 3
    large, shared = torch.full((300, 300), 0.1) * (rank + 1), torch.ones(2, 3, dtype=torch.int64) * rank
    given = [third.float() * (rank + 1), large.T, shared, shared, third * rank, torch.tensor(float(rank))]
    before = [value.clone() for value in given]
    found = ranks.sum(given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    torch.testing.assert_close(found[0], third.float() * 6)
    torch.testing.assert_close(found[1], torch.full((300, 300), 0.6))
    assert torch.equal(found[2], torch.full((2, 3), 3))
    assert torch.equal(found[3], found[2])
    torch.testing.assert_close(found[4], third * 3)
    assert found[5].shape == ()
    assert float(found[5]) == 3
    pieces = ranks.gather(torch.arange(rank * 2.0)[:, None])
    assert [piece.tolist() for piece in pieces] == [[], [[0.0], [1.0]], [[0.0], [1.0], [2.0], [3.0]]]
    assert ranks.largest(torch.tensor([rank, -rank])).tolist() == [2, 0]
    assert ranks.any(rank == 1)
    assert not ranks.any(False)
    done = []
    with ranks.first():
        done.append(rank)
        assert Path(os.environ["HSAE_CACHE"], "first").exists() == bool(rank)
        Path(os.environ["HSAE_CACHE"], "first").touch()
    with pytest.raises(Elsewhere if rank else UserError), ranks.first():
        raise UserError("wrong")


def _give_up(ranks: Grid) -> None:
    """One is out of memory where the others have a message to send: all of them hear it, and the next one arrives."""
    large, group = torch.ones(300, 300), ranks.data if ranks.data.size > 1 else ranks.latent
    for send in (
        lambda: group.sum([large]),
        lambda: group.gather(large),
        lambda: group.largest(large),
        lambda: group.any(False),
        ranks.agreement.all,
    ):
        try:
            if ranks.everyone.rank == 2:
                raise torch.OutOfMemoryError
            with pytest.raises(OutOfMemory) as raised:
                send()
            raise raised.value
        except Exception as error:
            ranks.agreement.give_up(error)
        assert float(ranks.total(torch.tensor(1.0))) == ranks.everyone.size


def _short_of_memory(ranks: Grid) -> None:
    """Trainings in which ranks run out of memory, the first time that a learner comes to a place."""
    training.grid = lambda latent_ranks: nullcontext(ranks)
    sharing = ranks.latent.size
    table = SHORT | {"latent_ranks": sharing}
    for place, home in (SHARING if sharing > 1 else PLACES).items():
        whole, failed = getattr(home, place), dict[str, int]()

        def failing(self: Any, *args: Any, whole: Any = whole, failed: dict[str, int] = failed, **more: Any) -> Any:
            found = whole(self, *args, **more)
            name = self.name if isinstance(self, Learner) else "either"
            failed[name] = failed.get(name, 0) + 1
            # After the work, so that what it changed must be taken back; one rank, then two at once.
            if failed[name] == 1 and 1 <= ranks.everyone.rank <= len(failed):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return found

        setattr(home, place, failing)
        training.train(TrainConfig.from_table(table | {"name": f"short-{sharing}-{place}"}, "test"))
        setattr(home, place, whole)


def _too_late(ranks: Grid) -> None:
    """In a step that nobody asks in, the one without memory says so, and the others hear that it has ended."""
    loop.ASKED, whole = 0, Learner.statistics

    def failing(self: Learner, *args: Any) -> Any:
        if not ranks.agreement.asked and ranks.everyone.rank == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *args)

    Learner.statistics = failing
    found = "nothing"
    try:
        training.train(TrainConfig.from_table(SHORT | {"name": "late", "latent_ranks": ranks.latent.size}, "test"))
    except UserError as error:
        found = f"{type(error).__name__} {error}"
    wanted = "UserError out of memory at step 2; the same" if ranks.everyone.rank == 3 else "Elsewhere "
    if not found.startswith(wanted):
        print(found, file=sys.stderr)
    # Without a word to the others, as a process ends.
    os._exit(0 if found.startswith(wanted) else 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with grid() as processes:
        if processes.everyone.size == 3:
            _messages(processes.data)
        for latent_ranks in (1,) if processes.everyone.size == 3 else (2, 4):
            shape = shaped(latent_ranks)
            _give_up(shape)
            _short_of_memory(shape)
        if processes.everyone.size == 4:
            _too_late(shape)
