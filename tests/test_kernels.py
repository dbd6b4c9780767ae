"""The compiled paths against the PyTorch that defines their results."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hsae.forward import Auxiliary, Forward
from hsae.kernels import adam as adam_module
from hsae.kernels import native
from hsae.kernels.adam import adam, reference
from hsae.kernels.softhebb import Competition, compete
from hsae.kernels.sparse import Code, encode, selected
from hsae.learner import Learner, Moment, accumulate
from hsae.rules.backprop import Backprop
from hsae.rules.delta import Delta
from hsae.rules.residual import Residual
from hsae.rules.softhebb import SoftHebb
from hsae.sae import Selection
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.setup import Setup, resolve
from hsae.sparse_forward import SparseForward

needs_compiler = pytest.mark.skipif(native.load("sparse") is None, reason="no C compiler, so PyTorch computes all")

SELECTIONS = (Selection(), Selection(least=0.7), Selection(k=1), Selection(k=5), Selection(k=10_000))


def problem(tokens: int, width: int, latents: int, seed: int = 0, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, encoder rows and bias whose drives lie on a grid, so that each is exact however it is added up."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (tokens, width), generator=generator).float()
    W = torch.randint(-3, 4, (latents, width), generator=generator).float() / 4
    # No two drives of a token are equal: what remains of ties is tested on its own.
    return x, W, torch.arange(latents).float() / 2**14 + shift


def code_of(x: Tensor, W: Tensor, b: Tensor, selection: Selection) -> Code:
    code = encode(x, W, b, selection, len(x) * len(W))
    assert code is not None
    return code


@needs_compiler
@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 100), (7, 3, 64), (101, 37, 333), (130, 100, 65), (25, 530, 70)])
def test_a_code_is_the_selected_drive(shape: tuple[int, int, int], selection: Selection):
    x, W, b = problem(*shape)
    assert torch.equal(code_of(x, W, b, selection).dense(), selected(torch.addmm(b, x, W.T), selection))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 70),
    width=st.integers(1, 40),
    latents=st.integers(1, 300),
    k=st.integers(0, 40),
    shift=st.sampled_from((-50.0, -2.0, 0.0, 2.0, 50.0)),
    seed=st.integers(0, 9),
)
def test_whatever_the_sizes(tokens: int, width: int, latents: int, k: int, shift: float, seed: int):
    x, W, b = problem(tokens, width, latents, seed, shift)
    code, whole = code_of(x, W, b, Selection(k=k)), selected(torch.addmm(b, x, W.T), Selection(k=k))
    assert torch.equal(code.dense(), whole)
    assert code.entries == int((whole > 0).sum())
    torch.testing.assert_close(code.decode(W, x), whole @ W - x, rtol=1e-5, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize(("shift", "share"), [(-1e4, 0.0), (1e4, 1.0)], ids=["nothing-active", "all-active"])
def test_nothing_and_everything_active(shift: float, share: float):
    x, W, b = problem(50, 20, 130, shift=shift)
    code, u = code_of(x, W, b, Selection()), torch.addmm(b, x, W.T)
    assert code.entries == share * u.numel()
    whole = torch.relu(u)
    assert torch.equal(code.fired(), (whole > 0).sum(0).float())
    torch.testing.assert_close(code.total(), whole.sum())
    torch.testing.assert_close(code.squares(), whole.square().sum(0))
    torch.testing.assert_close(code.decode(W, x), whole @ W - x, rtol=1e-5, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("k", [1, 3, 64, 129])
def test_of_equal_drives_the_first_are_kept(k: int):
    code = code_of(torch.ones(7, 4), torch.ones(130, 4), torch.zeros(130), Selection(k=k))
    assert torch.equal(code.dense(), torch.cat([torch.full((7, k), 4.0), torch.zeros(7, 130 - k)], 1))
    # Two above, the rest equal: the two, and the first of the rest.
    b = torch.zeros(130)
    b[[100, 120]] = 1.0
    kept = code_of(torch.ones(7, 4), torch.ones(130, 4), b, Selection(k=k)).dense()[3].nonzero().flatten().tolist()
    assert kept == sorted([100, 120][:k] + [i for i in range(130) if i not in (100, 120)][: max(0, k - 2)])


@needs_compiler
def test_the_smallest_and_the_largest_drives_count():
    b = torch.tensor([1e-45, -1e-45, 0.0, -0.0, 1e38, math.inf, -math.inf])
    code = code_of(torch.zeros(3, 2), torch.zeros(7, 2), b, Selection()).dense()
    assert torch.equal(code, torch.relu(b).expand(3, 7))
    for k in (1, 2):
        code = code_of(torch.zeros(3, 2), torch.zeros(7, 2), b, Selection(k=k)).dense()
        assert torch.equal(code[0].nonzero().flatten(), torch.tensor([4, 5][2 - k :]))
    assert code_of(torch.zeros(3, 2), torch.zeros(7, 2), torch.full((7,), math.nan), Selection()).entries == 0


@needs_compiler
def test_what_does_not_fit_is_refused_and_nothing_is_overrun():
    x, W, b = problem(60, 8, 100, shift=10.0)
    entries = int((torch.addmm(b, x, W.T) > 0).sum())
    assert encode(x, W, b, Selection(), entries - 1) is None
    assert encode(x, W, b, Selection(), 0) is None
    assert code_of(x, W, b, Selection()).entries == entries


@needs_compiler
@pytest.mark.parametrize("width", [1, 16, 37, 64, 100, 130])
def test_sums_over_tokens_and_latents(width: int):
    generator = torch.Generator().manual_seed(1)
    x, W, b = (torch.randn(*s, generator=generator) for s in ((90, width), (70, width), (70,)))
    signal, rows = torch.randn(90, width, generator=generator), torch.randn(70, width, generator=generator)
    code = code_of(x, W, b, Selection(k=9))
    whole = code.dense()
    back = code.back(signal, rows, scale=0.5, shift=0.25)
    wanted = (signal @ rows.T * 0.5 + 0.25) * (whole > 0)
    out, sums = torch.ones(70, width), torch.ones(70)
    code.add(out, signal, back, scale=2.0, sums=sums)
    torch.testing.assert_close(out, 1 + 2 * wanted.T @ signal, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums, 1 + wanted.sum(0), rtol=1e-4, atol=1e-4)
    out = torch.zeros(70, width)
    code.add(out, signal)
    torch.testing.assert_close(out, whole.T @ signal, rtol=1e-4, atol=1e-4)
    value, latent = code.runner_up(signal, rows)
    expected = (signal @ rows.T).masked_fill(whole > 0, -math.inf).max(1)
    assert torch.equal(latent, expected.indices)
    torch.testing.assert_close(value, expected.values)


@needs_compiler
def test_where_every_latent_is_active_there_is_no_runner_up():
    code = code_of(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(5), Selection())
    value, latent = code.runner_up(torch.ones(2, 3), torch.ones(5, 3))
    assert value.tolist() == [-math.inf] * 2
    assert latent.max() < 5


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(2)
    x, W, b = (torch.randn(*s, generator=generator) for s in ((999, 40), (300, 40), (300,)))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            code, out, sums = code_of(x, W, b, Selection(k=20)), torch.zeros(300, 40), torch.zeros(300)
            code.add(out, x, code.back(x, W), sums=sums)
            won = compete(x, W, b, 3.0, True)
            assert won is not None
            found.append((out, sums, code.decode(W, x), code.squares(), won.sx, won.s, won.y, won.fired))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


VARIANTS = (ReLU(l1=0.3), TopK(k=6), BatchTopK(k=4.0))


@needs_compiler
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("revived", [False, True], ids=["", "auxiliary"])
def test_the_sparse_forward_pass_is_the_dense_one(variant: ReLU | TopK | BatchTopK, tied: bool, revived: bool):
    setup = Setup(sae=variant, tied=tied, decoder=None if tied else Backprop(), decoder_bias=not tied)
    learner = Learner("t", setup, 3, 50, torch.zeros(17))
    x = torch.randn(80, 17, generator=torch.Generator().manual_seed(4))
    learner.begin(x, Moment(1, 9))
    auxiliary = Auxiliary(torch.tensor([3, 40]), 1, 0.5) if revived else None
    extra = learner.weights["encoder"].extra
    selection, encoder = variant.selection(extra), learner.weights["encoder"]
    assert selection is not None
    code = code_of(x, encoder.W, encoder.b, selection)
    dense = Forward(x, learner.weights, variant, auxiliary)
    sparse = SparseForward(x, learner.weights, variant, selection, code, auxiliary)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(sparse.code, dense.code, **close)
    torch.testing.assert_close(sparse.error, dense.error, **close)
    torch.testing.assert_close(sparse.beside, dense.beside, **close)
    for name in ("fired", "total"):
        torch.testing.assert_close(getattr(sparse.usage, name), getattr(dense.usage, name), **close)
    torch.testing.assert_close(sparse.usage.squares(), dense.usage.squares(), **close)
    for side in learner.rules:
        one, other = sparse.synapse(side), dense.synapse(side)
        torch.testing.assert_close(one.explained(), other.explained(), **close)
        gradients = one.gradient().items(), other.gradient().items()
        assert gradients[0].keys() == gradients[1].keys()
        for key, value in gradients[0].items():
            torch.testing.assert_close(value, gradients[1][key], **close)


@needs_compiler
@pytest.mark.parametrize("feedback", ["mirror", "encoder", "decoder"])
@pytest.mark.parametrize("runner_up", [0.0, 0.3])
def test_local_rules_learn_the_same_from_sparse_codes(feedback: str, runner_up: float):
    setup = Setup(encoder=Delta(feedback=feedback, runner_up=runner_up), decoder=Residual(), sae=TopK(k=4))  # pyright: ignore[reportArgumentType]
    learner = Learner("t", setup, 3, 60, torch.zeros(12))
    x = torch.randn(90, 12, generator=torch.Generator().manual_seed(4))
    learner.state["encoder"] = {
        k: torch.rand_like(v) if k == "feedback" else v for k, v in learner.state["encoder"].items()
    }
    (sparse,), dense = learner.forwards(x), learner.forward(x)
    assert isinstance(sparse, SparseForward)
    one, other = learner.statistics(sparse), learner.statistics(dense)
    for side, sums in other.items():
        for key, value in sums.items():
            torch.testing.assert_close(one[side][key], value, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("latents", [40, 512, 1100])
def test_a_step_of_softhebb_that_is_logged_makes_no_matrix_of_tokens_and_latents(latents: int):
    learner = Learner("t", Setup(encoder=SoftHebb(), tied=True, sae=ReLU(l1=0.1)), 3, latents, torch.zeros(12))
    encoder = learner.weights["encoder"]
    assert encoder.b is not None
    encoder.b.uniform_(-0.01, 0.02, generator=torch.Generator().manual_seed(9))
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(4))
    (counted,), dense = learner.forwards(x), learner.forward(x)
    learner.statistics(counted)
    found = counted.usage.fired, counted.usage.total, counted.error, counted.beside
    assert not {"u", "code"} & counted.__dict__.keys()
    wanted = (dense.code > 0).float().sum(0), dense.code.sum(), dense.code @ encoder.W - x, 0.1 * dense.code.sum() / 12
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_learner_takes_matrices_while_many_latents_are_active_and_goes_over_when_few_are():
    learner = Learner("t", Setup(decoder=Backprop(), sae=ReLU()), 0, 200, torch.zeros(8))
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(5))
    kinds = [type(forward) for forward in learner.forwards(x, 200)]
    assert kinds == [Forward] * 3
    assert learner.l0 == pytest.approx(100, rel=0.2)
    encoder = learner.weights["encoder"]
    assert encoder.b is not None
    encoder.b.fill_(-3.0)
    kinds = [type(forward) for forward in learner.forwards(x, 200)]
    assert kinds == [Forward, SparseForward, SparseForward]
    assert learner.l0 < 20
    # What has no room is computed by matrices, and the next micro-batch knows.
    learner.l0 = 0.0
    encoder.b.fill_(100.0)
    assert [type(forward) for forward in learner.forwards(x, 200)] == [Forward] * 3
    again = Learner("t", learner.setup, 0, 64, torch.zeros(8))
    again.restore(learner.tensors())
    assert again.l0 == learner.l0


@needs_compiler
@pytest.mark.parametrize("name", ["bp", "bp-tied", "residual-hebb", "hebb-tied", "bp-dec"])
def test_a_few_steps_end_the_same_with_and_without_compiled_code(name: str, monkeypatch: pytest.MonkeyPatch):
    setup = resolve([name], {name: {"sae": {"kind": "topk", "k": 4}}}, "test")[name]
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(6))
    ends = []
    for kernels in ("native", "torch"):
        monkeypatch.setenv("HSAE_KERNELS", kernels)
        native.load.cache_clear()
        learner = Learner("t", setup, 0, 48, torch.zeros(16))
        for step in range(1, 5):
            statistics: dict[str, dict[str, Tensor]] = {}
            learner.begin(x, Moment(step, 9), 100)
            kinds = set()
            for forward in learner.forwards(x, 100):
                kinds.add(type(forward))
                accumulate(statistics, learner.statistics(forward))
            learner.update(statistics, Moment(step, 9))
        ends.append(learner.weights)
        assert kinds == {SparseForward if kernels == "native" and name not in ("hebb-tied", "bp-dec") else Forward}
    native.load.cache_clear()
    for side, weights in ends[0].items():
        torch.testing.assert_close(weights.W, ends[1][side].W, rtol=1e-3, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 5), (30, 7, 64), (101, 37, 333), (700, 12, 4000)])
def test_softhebbs_sums(shape: tuple[int, int, int], signed: bool):
    tokens, width, latents = shape
    generator = torch.Generator().manual_seed(7)
    x, W, b = (torch.randn(*s, generator=generator) for s in ((tokens, width), (latents, width), (latents,)))
    drive = torch.empty(tokens, latents)
    won, wanted = compete(x, W, b, 4.0, signed, drive), Competition.of(torch.addmm(b, x, W.T), x, 4.0, signed)
    assert won is not None
    torch.testing.assert_close(drive, torch.addmm(b, x, W.T), rtol=1e-4, atol=1e-5)
    for name, value in vars(wanted).items():
        torch.testing.assert_close(getattr(won, name), value, rtol=1e-4, atol=1e-4)
    without = compete(x, W, b, 4.0, signed)
    assert without is not None
    assert torch.equal(without.sx, won.sx)


@needs_compiler
def test_softhebb_among_equals_and_far_apart():
    x, W = torch.ones(3, 2), torch.zeros(70, 2)
    won = compete(x, W, torch.zeros(70), 50.0, True)
    assert won is not None
    torch.testing.assert_close(won.s, torch.tensor([3 / 70] + [-3 / 70] * 69))
    # Drives so far apart that all but the winner's share is below what a float holds.
    far = torch.arange(70.0) * 100
    won = compete(x, W, far, 50.0, True)
    assert won is not None
    torch.testing.assert_close(won.s, torch.tensor([0.0] * 69 + [3.0]), rtol=0, atol=1e-30)
    assert won.fired.tolist() == [0.0] + [3.0] * 69


@needs_compiler
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (600, 300)])
@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_adam(shape: tuple[int, ...], step: int):
    generator = torch.Generator().manual_seed(8)
    gradient, mean = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    square = torch.rand(shape, generator=generator)
    rest = {"factor": torch.tensor(0.3), "step": torch.tensor(step), "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
    before = [t.clone() for t in (gradient, mean, square)]
    for one, other in zip(adam(gradient, mean, square, **rest), reference(gradient, mean, square, **rest), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(before, (gradient, mean, square), strict=True))


def test_adam_in_double_is_the_reference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adam_module, "call", lambda *_: pytest.fail("the C code takes floats"))
    one = torch.ones(3, dtype=torch.float64)
    rest = {"factor": torch.tensor(1.0), "step": torch.tensor(1), "lr": 1.0, "betas": (0.0, 0.0), "eps": 0.0}
    assert adam(one, one, one, **rest)[0].tolist() == [-1.0] * 3


PROBE = "from hsae.kernels import native; print(native.load('adam') is not None)"


def probe(**environment: str) -> str:
    """Whether C code can be had in a fresh process with these variables."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


@needs_compiler
def test_compiled_once_and_kept(tmp_path: Path):
    kept = {"HSAE_KERNEL_CACHE": str(tmp_path), "HSAE_KERNELS": "native"}
    assert probe(**kept) == "True"
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    assert probe(**kept) == "True"
    assert library.stat().st_mtime_ns == made
    # A broken file, such as one from another system, is no reason to fail.
    library.write_bytes(b"no library")
    assert probe(**kept) == "False"


def test_without_compiled_code_pytorch_serves(tmp_path: Path):
    assert probe(HSAE_KERNELS="torch") == "False"
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    assert probe(CC=str(broken), HSAE_KERNEL_CACHE=str(tmp_path / "cache"), HSAE_KERNELS="native") == "False"
    assert list((tmp_path / "cache").iterdir()) == []
