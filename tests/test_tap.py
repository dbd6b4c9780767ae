"""The fast tap gives what TransformerLens' bridge gives, for every architecture it knows, and steps back elsewhere."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import save_tokenizer

from hsae.kernels import attention, dense
from hsae.kernels.attention import attend, native_attend, reference, sdpa
from hsae.kernels.dense import Affine, affine, gelu, gelu_
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.tapping import FastTap, read_parts

SHARED = Path(__file__).parents[2] / "shared" / "data"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
NEO = {"hidden_size": 16, "num_heads": 4, "intermediate_size": 32, "num_layers": 4, "window_size": 8}
GPT2 = {"n_embd": 24, "n_head": 3, "n_layer": 3}
NEOX = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 40}
LLAMA = NEOX | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
# name -> (transformers' name, sizes beside those of all)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-neo": ("GPTNeo", NEO | {"attention_types": [[["global", "local"], 2]]}),
    "gpt-neo, window 1": ("GPTNeo", NEO | {"attention_types": [[["local", "global"], 2]], "window_size": 1}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, scaled by layer": ("GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, relu": ("GPT2", GPT2 | {"activation_function": "relu"}),
    "pythia": ("GPTNeoX", NEOX | {"rotary_pct": 0.25}),
    "neox, sequential": ("GPTNeoX", NEOX | {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "llama": ("Llama", LLAMA | {"num_key_value_heads": 4}),
    "llama, grouped": ("Llama", LLAMA),
    "llama, biases, wide heads": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 20}),
    "llama, llama3 rotation": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
}
LAYER = ("resid_pre", "attn_out", "mlp_out", "resid_post")
INSIDE = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post")
HOOKS = ("hook_embed", *(f"blocks.{n}.hook_{h}" for n in (0, 1, 2) for h in LAYER), *(f"blocks.1.{h}" for h in INSIDE))


def make(folder: Path, kind: str, sizes: dict[str, Any]) -> LM:
    """A model with random weights, biases and gains included, so that nothing is hidden by a zero or a one."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=300, max_position_embeddings=64, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return load_lm(str(folder), device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LM]:
    made: dict[str, LM] = {}

    def get(name: str) -> LM:
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp("model"), *MODELS[name])
        # Earlier tests may have made it trust the fast tap.
        return LM(**{f.name: getattr(made[name], f.name) for f in dataclasses.fields(LM)})

    return get


def fast(lm: LM) -> FastTap:
    parts = read_parts(lm.bridge)
    assert parts is not None
    return FastTap(parts)


@pytest.fixture(params=[True, False], ids=["kernels", "pytorch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C kernels, where there is a compiler, and without them."""
    if not request.param:
        monkeypatch.setattr(attention, "_library", lambda: None)
        monkeypatch.setattr(dense, "_library", lambda: None)


def tokens(sequences: int, length: int) -> torch.Tensor:
    return torch.randint(0, 300, (sequences, length), generator=torch.Generator().manual_seed(1))


def assert_same(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert tuple(found) == tuple(right)
    for hook, values in right.items():
        assert found[hook].shape == values.shape, hook
        assert (found[hook] - values).norm() <= 2e-6 * values.norm(), hook


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_bridge(models: Callable[[str], LM], name: str) -> None:
    lm = models(name)
    tap = fast(lm)
    hooks = HOOKS if lm.bridge.cfg.parallel_attn_mlp else (*HOOKS, "blocks.1.hook_resid_mid")
    assert tap.knows(hooks)
    # In this order the buffers are too large, too small and just right.
    for sequences, length in ((3, 37), (1, 1), (2, 64), (3, 37)):
        ids = tokens(sequences, length)
        assert_same(tap.tap(ids, hooks), lm.tap(ids, hooks))


def test_one_hook_alone_gives_the_same(models: Callable[[str], LM]) -> None:
    tap, ids = fast(models("llama, grouped")), tokens(2, 21)
    together = tap.tap(ids, HOOKS)
    for hook in HOOKS:
        assert torch.equal(tap.tap(ids, (hook,))[hook], together[hook])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_sequences(models: Callable[[str], LM], threads: int) -> None:
    tap, ids, before = fast(models("gpt-neo")), tokens(5, 33), torch.get_num_threads()
    alone = tap.tap(ids, HOOKS)
    torch.set_num_threads(threads)
    try:
        assert_same(tap.tap(ids, HOOKS), alone)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gpt-neo", "gpt2", "pythia", "llama, grouped"])
def test_results_depend_neither_on_threads_nor_on_what_is_given_together(tmp_path: Path, name: str) -> None:
    """To the bit, where the C kernels compute; widths fill no vectors, and pieces are shared out by PyTorch."""
    kind, sizes = MODELS[name]
    odd = {"n_inner": 203} if kind == "GPT2" else {"intermediate_size": 203}
    lm = make(tmp_path, kind, sizes | odd)
    tap, ids = fast(lm), tokens(24, 61)
    assert tap.lanes == (attention.lanes(4) if dense._library() else 0)
    hooks = ("blocks.0.mlp.hook_post", "blocks.1.hook_resid_post")
    if not tap.lanes:
        return
    alone, before = tap.tap(ids, hooks), torch.get_num_threads()
    try:
        for threads, together in ((1, 1), (1, 5), (2, 24), (3, 7), (5, 24), (7, 9)):
            torch.set_num_threads(threads)
            found = [tap.tap(part, hooks) for part in ids.split(together)]
            for hook in hooks:
                assert torch.equal(torch.cat([each[hook] for each in found]), alone[hook]), (hook, threads, together)
    finally:
        torch.set_num_threads(before)


def test_products_that_pytorch_computes_are_said(models: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, hooks = models("gpt-neo"), ("blocks.1.hook_resid_post",)
    assert lm.way(hooks)["tap"] == "bridge"
    assert lm.way(hooks)["threads"] == torch.get_num_threads()
    assert lm.trust_fast(tokens(2, 9), hooks) == ""
    if fast(lm).lanes:
        assert lm.way(hooks) == {"tap": "fast", "torch": torch.__version__, "kernels": f"C, {fast(lm).lanes} lanes"}
    monkeypatch.setattr(dense, "MOST_WEIGHTS", 100)
    assert lm.way(hooks)["kernels"] == "PyTorch"
    assert lm.way(hooks)["threads"] == torch.get_num_threads()


def test_layers_above_the_last_hook_are_not_needed(models: Callable[[str], LM]) -> None:
    lm, hooks = models("pythia"), ("blocks.0.mlp.hook_post", "blocks.1.hook_resid_pre")
    parts = fast(lm).parts
    norm = parts.blocks[1].norm1
    broken = dataclasses.replace(parts.blocks[1], norm1=dataclasses.replace(norm, weight=norm.weight * torch.nan))
    tap = FastTap(dataclasses.replace(parts, blocks=(parts.blocks[0], broken, broken)))
    assert_same(tap.tap(tokens(2, 9), hooks), lm.tap(tokens(2, 9), hooks))


def test_padding_on_the_right_changes_nothing_before_it(models: Callable[[str], LM]) -> None:
    tap, ids, hook = fast(models("llama, grouped")), tokens(2, 20), "blocks.2.hook_resid_post"
    padded = ids.clone()
    padded[:, 12:] = 0
    torch.testing.assert_close(tap.tap(padded, (hook,))[hook][:, :12], tap.tap(ids, (hook,))[hook][:, :12])


# ---- who is trusted


def test_the_lm_uses_it_once_it_was_checked(models: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, ids = models("gpt-neo"), tokens(2, 30)
    assert not lm.trusts_fast(HOOKS)
    right = lm.tap(ids, HOOKS)
    assert lm.trust_fast(ids, HOOKS) == ""
    assert lm.trusts_fast(HOOKS)
    assert lm.trusts_fast(HOOKS[:2])
    monkeypatch.setattr(LM, "_capture", None)  # the bridge has nothing more to do
    assert_same(lm.tap(ids, HOOKS), right)


def test_other_hook_points_go_to_the_bridge(models: Callable[[str], LM]) -> None:
    lm, ids, hooks = models("gpt2"), tokens(2, 10), ("blocks.0.ln1.hook_normalized", "blocks.0.hook_resid_post")
    assert lm.trust_fast(ids, hooks) == ""
    assert not lm.trusts_fast(hooks)
    assert_same(lm.tap(ids, hooks), lm.tap(ids, hooks))


@pytest.mark.parametrize("part", ["q", "o", "down"])
def test_it_is_given_up_when_it_differs(models: Callable[[str], LM], part: str) -> None:
    lm, ids, hooks = models("gpt-neo"), tokens(2, 30), ("blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre")
    right = lm.tap(ids, hooks)
    assert lm._fast is not None
    first, *others = lm._fast.parts.blocks
    # The weights of one part of one layer, a little off.
    real = getattr(first, part)
    tampered = dataclasses.replace(first, **{part: Affine(real.weight * 1.05, real.bias)})
    lm.__dict__["_fast"] = FastTap(dataclasses.replace(lm._fast.parts, blocks=(tampered, *others)))
    said = lm.trust_fast(ids, hooks)
    assert said.startswith("blocks.2.hook_resid_pre: the fast computation differs from TransformerLens' by ")
    assert said.endswith("it is not used")
    assert "\n" not in said
    assert_same(lm.tap(ids, hooks), right)


def test_not_a_number_is_no_agreement(models: Callable[[str], LM]) -> None:
    lm = models("gpt2")
    assert lm._fast is not None
    lm.__dict__["_fast"] = FastTap(dataclasses.replace(lm._fast.parts, embed=lm._fast.parts.embed * torch.nan))
    assert "differs from TransformerLens' by nan" in lm.trust_fast(tokens(1, 5), ("blocks.0.hook_resid_pre",))


def test_what_it_does_not_know_exactly_is_the_bridges(
    models: Callable[[str], LM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert read_parts(make(tmp_path / "a", "Llama", LLAMA | {"rope_parameters": moving}).bridge) is None
    assert read_parts(make(tmp_path / "b", "GPT2", GPT2 | {"activation_function": "quick_gelu"}).bridge) is None
    assert read_parts(make(tmp_path / "d", "GPT2", GPT2 | {"scale_attn_weights": False}).bridge) is None
    half = make(tmp_path / "c", "GPT2", GPT2)
    half.bridge.original_model.to(torch.bfloat16)
    assert read_parts(half.bridge) is None
    lm = models("gpt2")
    monkeypatch.setattr(lm.bridge.original_model.config, "model_type", "another")
    assert read_parts(lm.bridge) is None
    ids, hooks = tokens(1, 5), ("blocks.0.hook_resid_post",)
    assert lm.trust_fast(ids, hooks) == ""
    assert not lm.trusts_fast(hooks)
    assert lm.tap(ids, hooks)[hooks[0]].shape == (1, 5, 24)


def test_the_bundled_model() -> None:
    lm = load_lm("bundled", device="cpu")
    ids, hooks = torch.arange(2 * 512).view(2, 512) % lm.vocabulary, ("blocks.4.hook_resid_pre",)
    assert_same(fast(lm).tap(ids, hooks), lm.tap(ids, hooks))


@pytest.mark.skipif(
    not SHARED.exists(),
    reason="needs the real model and text of ../shared/data, which may not be copied into the project",
)
def test_stories260k() -> None:
    lm = load_lm(str(SHARED / "stories260K"), device="cpu")
    text = (SHARED / "text" / "tinystories_train_sample.txt").read_text()[:8000]
    ids = torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"][:1023]).view(3, 341)
    hooks = ("blocks.1.hook_attn_out", "blocks.2.mlp.hook_post", "blocks.4.hook_resid_post")
    assert_same(fast(lm).tap(ids, hooks), lm.tap(ids, hooks))


# ---- the attention kernels beside their reference

SIZES = [  # sequences, positions, heads, heads of keys, numbers in a head, window
    (1, 1, 1, 1, 4, 0),
    (2, 16, 2, 2, 4, 0),
    (2, 17, 4, 2, 4, 0),
    (3, 67, 6, 2, 3, 1),
    (1, 100, 3, 3, 7, 100),
    (1, 100, 2, 1, 8, 256),
    (2, 130, 2, 2, 16, 33),
    (1, 90, 2, 2, 20, 0),
    (1, 70, 2, 1, 64, 15),
    (1, 33, 1, 1, 80, 0),
    (2, 40, 2, 2, 128, 16),
]


def inputs(sequences: int, length: int, heads: int, kv_heads: int, d_head: int) -> list[torch.Tensor]:
    """q, k and v as slices of one buffer, as the tap has them."""
    generator = torch.Generator().manual_seed(length)
    numbers = torch.randn(sequences, length, (heads + 2 * kv_heads) * d_head, generator=generator)
    parts = numbers.split([heads * d_head, kv_heads * d_head, kv_heads * d_head], dim=2)
    return [part.unflatten(2, (-1, d_head)) for part in parts]


FASTER = [sdpa, attend] if attention._library() is None else [sdpa, attend, native_attend]


@pytest.mark.parametrize("faster", FASTER, ids=lambda function: function.__name__)
class TestAttention:
    def check(self, faster: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> None:
        out = torch.full(q.shape, torch.nan)
        faster(q, k, v, out, scale, window)
        right = reference(q.double(), k.double(), v.double(), scale, window).float()
        torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_random(self, faster: Any, size: tuple[int, ...]):
        self.check(faster, *inputs(*size[:5]), scale=0.5, window=size[5])

    @pytest.mark.parametrize("window", [0, 9])
    def test_scores_far_apart(self, faster: Any, window: int):
        q, k, v = inputs(1, 50, 2, 2, 4)
        # Whole numbers, so that scores are exact: at this size their rounding would change the weights.
        q, k = (q * 100).round(), (k * 100).round()
        self.check(faster, q, k, v, scale=1.0, window=window)
        self.check(faster, q.abs(), -k.abs(), v, scale=1.0, window=window)

    def test_rising_scores_move_the_scale_again_and_again(self, faster: Any):
        _, _, v = inputs(1, 64, 1, 1, 4)
        q, k = torch.ones(1, 64, 1, 4), torch.arange(64.0)[None, :, None, None].expand(1, 64, 1, 4).contiguous()
        self.check(faster, q, k * 20, v, scale=1.0, window=0)
        self.check(faster, q, -k * 20, v, scale=1.0, window=0)

    @pytest.mark.parametrize("window", [0, 1, 5])
    def test_ties_give_the_mean(self, faster: Any, window: int):
        q, k, v = inputs(1, 30, 2, 2, 4)
        self.check(faster, q * 0, k, v, scale=1.0, window=window)

    def test_huge_values(self, faster: Any):
        q, k, v = inputs(1, 30, 2, 2, 4)
        out, right = torch.empty_like(q), reference(q, k, v, 1.0)
        faster(q, k, v * 1e30, out, 1.0)
        torch.testing.assert_close(out * 1e-30, right, atol=2e-6, rtol=2e-5)


def test_the_result_does_not_depend_on_the_threads() -> None:
    q, k, v = inputs(3, 300, 4, 2, 8)
    outs, before = [], torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        outs.append(torch.empty(q.shape))
        attend(q, k, v, outs[-1], 0.3)
    torch.set_num_threads(before)
    assert torch.equal(*outs)


# ---- the products and the GELU beside theirs


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 7, 3), (97, 64, 192), (200, 37, 65), (900, 130, 160)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products(size: tuple[int, int, int], bias: bool, threads: int) -> None:
    rows, into, out = size
    generator, before = torch.Generator().manual_seed(rows), torch.get_num_threads()
    # Laid out as Linear has it; written into a slice of a wider buffer.
    weight, x = torch.randn(out, into, generator=generator).t(), torch.randn(rows, into, generator=generator)
    b = torch.randn(out, generator=generator) if bias else None
    wide = torch.full((rows, out + 9), torch.nan)
    torch.set_num_threads(threads)
    found = Affine(weight, b).into(wide[:, :out], x)
    torch.set_num_threads(before)
    torch.testing.assert_close(found, affine(torch.empty(rows, out), x, weight, b), atol=2e-5, rtol=1e-5)
    assert wide[:, out:].isnan().all()


def test_one_bad_row_stays_alone() -> None:
    x, weight = torch.ones(9, 4), torch.ones(4, 5)
    x[3] = torch.nan
    found = Affine(weight, None).into(torch.empty(9, 5), x)
    assert found.isnan().any(1).tolist() == [row == 3 for row in range(9)]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("numbers", [1, 15, 16, 333, 400_000])
def test_gelu(numbers: int) -> None:
    x = torch.randn(1, numbers, generator=torch.Generator().manual_seed(numbers)) * 4
    right, found, before = gelu(x.double()).float(), x.clone(), torch.get_num_threads()
    torch.set_num_threads(3)
    gelu_(found)
    torch.set_num_threads(before)
    torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("compiled")
def test_gelu_far_out() -> None:
    x = torch.tensor([[-torch.inf, -1e30, -1e4, -20.0, -0.0, 20.0, 1e4, 1e30, torch.inf, torch.nan]])
    right, found = torch.relu(x), x.clone()
    gelu_(found)
    assert found[0, 1:-1].isfinite()[:-1].all()
    torch.testing.assert_close(found[:, 1:], right[:, 1:], atol=2e-8, rtol=1e-6, equal_nan=True)
