"""The Triton kernels against their references: on a GPU, or interpreted on the CPU, in a process of their own.

Inputs are small multiples of a quarter, so that drives are exact in every dtype: which latents fire, win or are chosen
must agree exactly, ties included.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from hsae.forward import Forward  # noqa: E402
from hsae.kernels import triton_adam, triton_relu, triton_softhebb, triton_sparse, triton_tiles, triton_topk  # noqa: E402
from hsae.kernels.adam import reference  # noqa: E402
from hsae.kernels.triton_tiles import Tiles  # noqa: E402
from hsae.kernels.triton_topk import Chosen  # noqa: E402
from hsae.rules import Weights  # noqa: E402
from hsae.rules.softhebb import SoftHebb  # noqa: E402
from hsae.sae.relu import ReLU  # noqa: E402
from hsae.sae.topk import TopK  # noqa: E402

INTERPRETED, CUDA = triton_tiles.INTERPRETED, torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# On a GPU the tiles that training would take; interpreted, small ones.
TILES = None if CUDA else Tiles(32, 16)
kernels = pytest.mark.skipif(not (INTERPRETED or CUDA), reason="run by test_under_the_interpreter")
CASES = [
    (50, 70, 17, 2, "float32"),
    (1, 5, 16, 3, "float32"),
    (33, 50, 100, 1, "bfloat16"),
    (20, 40, 130, 1, "float32"),
    (24, 40, 64, 1, "float16"),
    (18, 40, 300, 2, "float32"),
    (10, 20, 300, 1, "bfloat16"),
]
BIAS = {"mixed": 0.0, "silent": -1000.0, "all": 1000.0}


@pytest.mark.skipif(INTERPRETED or CUDA, reason="the kernels' tests run in this process")
def test_under_the_interpreter():
    # Triton is interpreted only where that was asked for before it was imported, so not here.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
    assert done.stdout.count(".") > 50, done.stdout


def test_training_does_not_import_triton():
    code = "import sys, hsae.training; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def grid(*shape: int, dtype: str = "float32", seed: int = 0) -> Tensor:
    """Multiples of 1/4 from -1 to 1."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randint(-4, 5, shape, generator=generator) / 4).to(DEVICE, getattr(torch, dtype))


def agree(found: object, wanted: object, dtype: str, exact: tuple[str, ...] = ()) -> None:
    """Every tensor of a result is near the float64 one; those named are equal."""
    near = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    for name, right in vars(wanted).items():
        here = getattr(found, name)
        assert (here is None) == (right is None), name
        if right is None:
            continue
        assert here.shape == right.shape, name
        distance = (here.double() - right.double()).norm()
        limit = 0 if name in exact else near
        assert distance <= limit * right.double().norm(), f"{name}: {distance / right.double().norm():.1e}"


@kernels
@pytest.mark.parametrize("mode", BIAS)
@pytest.mark.parametrize(("T", "K", "D", "S", "dtype"), CASES)
def test_relu(T: int, K: int, D: int, S: int, dtype: str, mode: str):
    x, W_enc, W_dec = grid(T, D, dtype=dtype), grid(S, K, D, dtype=dtype), grid(S, K, D, dtype=dtype, seed=1)
    b_enc, l1 = grid(S, K) + BIAS[mode], torch.rand(S, device=DEVICE)
    if mode == "all":
        W_dec = W_dec / 1024  # so that float16 holds the error
    b_dec = grid(S, D) if S > 1 else None
    wide = [None if t is None else t.double() for t in (x, W_enc, b_enc, W_dec, b_dec)]
    found = triton_relu.forward(x, W_enc, b_enc, W_dec, b_dec, 2.0, tiles=TILES)
    wanted = triton_relu.forward_reference(*wide, 2.0)  # pyright: ignore[reportArgumentType]
    agree(found, wanted, dtype, ("active", "winner"))
    error = wanted.error.to(x.dtype)
    for asked in ({}, {"tied": True}, {"encoder": False}, {"decoder": False}):
        found = triton_relu.gradients(x, error, W_enc, b_enc, W_dec, l1, tiles=TILES, **asked)
        decoder = wide[1] if "tied" in asked else wide[3]
        right = (wide[0], error.double(), wide[1], wide[2], decoder, l1.double())
        agree(found, triton_relu.gradients_reference(*right, **asked), dtype, ("fired",))  # pyright: ignore[reportArgumentType]


@kernels
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("T", "K", "D", "S", "dtype"), CASES)
def test_softhebb(T: int, K: int, D: int, S: int, dtype: str, signed: bool):
    x, W, b, temperature = grid(T, D, dtype=dtype), grid(S, K, D, dtype=dtype), grid(S, K), 3.0
    W[:, K // 2 :] = W[:, : K - K // 2].clone()  # every drive twice: the first wins
    b[:, K // 2 :] = b[:, : K - K // 2].clone()
    first = triton_softhebb.compete(x, W, b, temperature, tiles=TILES)
    assert int(first.winner.max()) < K - K // 2
    found = triton_softhebb.statistics(x, W, b, temperature, signed, first, tiles=TILES)
    agree(found, triton_softhebb.reference(x.double(), W.double(), b.double(), temperature, signed), dtype)
    beside = triton_relu.forward(x, W, b, W, None, temperature, tiles=TILES)
    assert torch.equal(beside.winner, first.winner)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(beside.logsumexp, first.logsumexp)


@kernels
@pytest.mark.parametrize("room", [0, 8])
@pytest.mark.parametrize("mode", ["mixed", "silent", "some", "equal", "all"])
def test_topk_chooses_exactly(mode: str, room: int):
    for T, K, D, S, k in ((20, 70, 17, 2, 5), (6, 40, 130, 1, 8), (1, 5, 16, 3, 5)):
        x, W = grid(T, D), grid(S, K, D)
        b = grid(S, K) + BIAS.get(mode, -4.0 if mode == "some" else 0.0)
        if mode == "equal":
            x, W, b = x * 0, W, b * 0 + 1
        found = triton_topk.choose(x, W, b, k, tiles=TILES, room=room)
        wanted = triton_topk.reference(x, W, b, k)
        assert torch.equal(found.latent, wanted.latent)
        assert torch.equal(found.code, wanted.code)
        if mode == "equal":
            assert torch.equal(found.latent[0, 0].cpu(), torch.arange(k, dtype=torch.int32))


@kernels
def test_topk_shows_nan():
    x, W, b = grid(4, 16), grid(1, 40, 16), grid(1, 40)
    W[0, 7, 3] = torch.nan
    found = triton_topk.choose(x, W, b, 4, tiles=TILES)
    assert bool(found.code.isnan().any(2).all())


@kernels
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("T", "K", "D", "S", "k", "dtype"), [(90, 11, 17, 2, 3, "float32"), (9, 40, 130, 1, 8, "bfloat16")]
)
def test_sparse(T: int, K: int, D: int, S: int, k: int, dtype: str, tied: bool):
    x, W_enc, W_dec = grid(T, D, dtype=dtype), grid(S, K, D), grid(S, K, D, dtype=dtype, seed=1)
    b, b_dec = grid(S, K) - 4, grid(S, D)
    b[:, 3] += 100  # one latent fires on every token, most on few
    chosen = triton_topk.reference(x.float(), W_enc, b, k)
    exact = Chosen(chosen.latent, chosen.code.double())
    found = triton_sparse.decode(x, chosen, W_dec, b_dec)
    wanted = triton_sparse.decode_reference(x.double(), exact, W_dec.double(), b_dec.double())
    agree(found, wanted, dtype)
    error = wanted.error.to(x.dtype)
    back = triton_sparse.gradients(x, error, chosen, W_dec, tied)
    right = triton_sparse.gradients_reference(x.double(), error.double(), exact, W_dec.double(), tied)
    agree(back, right, dtype, ("fired",))


@kernels
@pytest.mark.parametrize("step", [1, 1000])
def test_adam(step: int):
    gradient, mean, square = grid(70, 17), grid(70, 17, seed=1), grid(70, 17, seed=2).abs()
    numbers = {"factor": torch.tensor(0.3, device=DEVICE), "step": torch.tensor(step, device=DEVICE)}
    rest = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}
    wide = (gradient.double(), mean.double(), square.double())
    for found, wanted in zip(
        triton_adam.adam(gradient, mean, square, **numbers, **rest), reference(*wide, **numbers, **rest), strict=True
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=3e-5, atol=1e-9)


@kernels
@pytest.mark.parametrize("module", [triton_relu, triton_softhebb])
def test_several_runs_of_tokens_add_up(monkeypatch: pytest.MonkeyPatch, module: ModuleType):
    monkeypatch.setattr(module, "splits", lambda *_: 3)
    (test_relu if module is triton_relu else test_softhebb)(
        70, 40, 17, 2, "float32", *(["mixed"] if module is triton_relu else [True])
    )


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_the_same_twice():
    x, W, b, l1 = (torch.randn(*shape, device=DEVICE) for shape in ((3000, 64), (1, 900, 64), (1, 900), (1,)))
    both = []
    for _ in range(2):
        made = triton_relu.forward(x, W, b, W)
        sums = triton_softhebb.statistics(x, W, b, 5.0)
        chosen = triton_topk.choose(x, W, b, 16)
        grads = triton_relu.gradients(x, made.error, W, b, W, l1), triton_sparse.gradients(x, made.error, chosen, W)
        both.append([value for result in (made, sums, chosen, *grads) for value in vars(result).values()])
    for once, again in zip(*both, strict=True):
        assert (once is None and again is None) or torch.equal(once, again)


HOPPER = {
    # kernel: dtypes of its pointers (h: 16 bits), what it takes by value, its switches.
    "relu.forward": "x h W_enc h b_enc f W_dec h b_dec f error h squared f l1 f active i sums f lse f winners i",
    "relu.gradients": "x h error h W_enc h b_enc f W_dec h l1 f to_enc f to_b f to_dec f fired f",
    "softhebb.compete": "x h W h b f lse f winners i totals f",
    "softhebb.statistics": "x h W h b f lse f winners i sx f s_sum f y_sum f fired f",
    "topk.bound": "x h W h b f bound i",
    "topk.collect": "x h W h b f bound i count i place i drives f",
}
SWITCHES = {
    "relu.forward": {"BIAS": True, "COMPETE": True},
    "relu.gradients": {"ENC": True, "DEC": True, "TIED": False},
    "softhebb.compete": {},
    "softhebb.statistics": {"SIGNED": True},
    "topk.bound": {"COARSE": 12},
    "topk.collect": {"ROOM": 64},
}


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled when interpreted")
@pytest.mark.parametrize("name", HOPPER)
def test_kernels_compile_for_hopper_on_its_tensor_cores(name: str):
    """No GPU is needed for it. With the tiles that come first for bfloat16 activations of 64 dimensions."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, x = {"relu": triton_relu, "softhebb": triton_softhebb, "topk": triton_topk}[name.split(".")[0]], grid(1, 64)
    tiles = triton_tiles.candidates("topk" if module is triton_topk else name, x.bfloat16(), k=32)[0]
    kernel = getattr(module, f"_{name.split('.')[1]}")
    words = HOPPER[name].split()
    types = {"h": "*bf16", "f": "*fp32", "i": "*i32"}
    pointers = {key: types[value] for key, value in zip(words[::2], words[1::2], strict=True)}
    sizes = {"D": 64, "BD": 64, "BT": tiles.tokens, "BK": tiles.latents, "PRECISION": "ieee", "WIDEN": False}
    fixed = sizes | SWITCHES[name]
    values = {"T": "i32", "K": "i32", "k": "i32", "run": "i32", "temperature": "fp32", "scale": "fp32"}
    order = kernel.arg_names
    signature = {key: "constexpr" if key in fixed else pointers.get(key) or values[key] for key in order}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, key in enumerate(order) if signature[key] not in ("constexpr", "fp32")
    }
    source = ASTSource(kernel, signature, {(order.index(key),): value for key, value in fixed.items()}, aligned)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in made.asm["ptx"]
    assert made.metadata.shared <= 227 * 1024


@pytest.mark.parametrize("tied", [True, False])
def test_the_relu_reference_is_what_training_computes(tied: bool):
    x, b = torch.randn(20, 8).double(), torch.randn(12).double()
    W_enc, W_dec = torch.randn(2, 12, 8).double()
    weights = {"encoder": Weights(W_enc, b)} | ({} if tied else {"decoder": Weights(W_dec, torch.randn(8).double())})
    forward = Forward(x, weights, ReLU(l1=0.3))
    decoder = W_enc if tied else W_dec
    b_dec = None if tied else weights["decoder"].b[None]  # pyright: ignore[reportOptionalSubscript]
    made = triton_relu.forward_reference(x, W_enc[None], b[None], decoder[None], b_dec)
    torch.testing.assert_close(made.error[0], forward.error)
    l1 = torch.full((1,), 0.3).double()
    found = triton_relu.gradients_reference(x, made.error, W_enc[None], b[None], decoder[None], l1, tied=tied)
    wanted = forward.synapse("encoder").gradient()
    torch.testing.assert_close(found.W_enc[0], wanted.W, rtol=1e-6, atol=1e-7)  # pyright: ignore[reportOptionalSubscript]
    torch.testing.assert_close(found.b_enc[0], wanted.b, rtol=1e-6, atol=1e-7)  # pyright: ignore[reportOptionalSubscript]
    if not tied:
        wanted = forward.synapse("decoder").gradient()
        torch.testing.assert_close(found.W_dec[0], wanted.W)  # pyright: ignore[reportOptionalSubscript]
        torch.testing.assert_close(made.b_dec[0] * (2 / 8), wanted.b)


@pytest.mark.parametrize("signed", [True, False])
def test_the_softhebb_reference_is_the_rules(signed: bool):
    x, weights = torch.randn(20, 8), Weights(torch.randn(12, 8), torch.randn(12))
    rule = SoftHebb(temperature=3.0, signed=signed, prior_signed=False)
    forward = Forward(x, {"encoder": weights}, ReLU())
    wanted = rule.statistics(forward.synapse("encoder")) | {"fired": forward.usage.fired}
    found = triton_softhebb.reference(x, weights.W[None], weights.b[None], 3.0, signed)  # pyright: ignore[reportOptionalSubscript]
    for name, value in vars(found).items():
        torch.testing.assert_close(value[0], wanted[name])


def test_the_topk_reference_is_what_training_computes():
    x, b = torch.randn(20, 8), torch.randn(12)
    W_enc, W_dec = torch.randn(2, 12, 8)
    forward = Forward(x, {"encoder": Weights(W_enc, b), "decoder": Weights(W_dec)}, TopK(k=3))
    chosen = triton_topk.reference(x, W_enc[None], b[None], 3)
    error = triton_sparse.decode_reference(x, chosen, W_dec[None]).error
    torch.testing.assert_close(error[0], forward.error)
    found = triton_sparse.gradients_reference(x, error, chosen, W_dec[None])
    torch.testing.assert_close(found.W_enc[0], forward.synapse("encoder").gradient().W)  # pyright: ignore[reportOptionalSubscript]
    torch.testing.assert_close(found.W_dec[0], forward.synapse("decoder").gradient().W)  # pyright: ignore[reportOptionalSubscript]
