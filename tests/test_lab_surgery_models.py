"""Surgery on a transformer's matrices, held against the model's own computation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hsae.cli import run
from hsae.errors import UserError
from hsae.lab.surgery import transformer
from hsae.lab.surgery.ledger import apply_edit
from hsae.lab.surgery.memory import Association
from hsae.lab.surgery.surgeon import Surgeon
from hsae.lab.surgery.transformer import Kind, Transformer
from hsae.lm import LM

SHARED = Path(__file__).parents[2] / "shared" / "data" / "stories260K"
PROMPT, OTHER = "Once upon a time there was a little", "The sun was bright and the sky was"


@pytest.fixture(scope="module", autouse=True)
def less_text() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "ROWS", 24)
        patch.setattr(transformer, "HELD", 4)
        yield


@pytest.fixture(scope="module")
def lm(less_text: None) -> LM:
    from hsae.loading import load_lm

    return load_lm("bundled", "cpu")


def bits(lm: LM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in lm.bridge.original_model.named_parameters()}


def test_the_mlps_matrix_is_the_models(lm: LM):
    memory = Transformer(lm, "mlp", 3, rule="delta")
    cue = memory.cue(PROMPT)
    ids = torch.tensor([memory.ids(PROMPT)])
    assert ids[0, 0] == lm.tokenizer.bos_token_id
    out = lm.tap(ids, ["blocks.3.mlp.out.hook_out"])["blocks.3.mlp.out.hook_out"][0, -1]
    torch.testing.assert_close(memory.recall(cue[None])[0], out)
    before, surgeon = bits(lm), Surgeon(memory)
    value = memory.raising(cue, " dog")
    surgeon.inject(Association(cue, value))
    now = lm.tap(ids, ["blocks.3.mlp.out.hook_out"])["blocks.3.mlp.out.hook_out"][0, -1]
    # In the model itself, not in a copy of ours; and only there.
    torch.testing.assert_close(now, value, atol=2e-5, rtol=0)
    changed = [name for name, p in bits(lm).items() if not torch.equal(p, before[name])]
    assert [name.replace("._original_component", "") for name in changed] == ["transformer.h.3.mlp.c_proj.weight"]
    surgeon.undo()
    assert all(torch.equal(p, before[name]) for name, p in bits(lm).items())


@pytest.mark.parametrize("rule", ["delta", "rome", "null-space"])
def test_rules_give_the_value_at_the_key(lm: LM, rule):
    memory = Transformer(lm, "mlp", 3, rule=rule)
    k, value = memory.cue(PROMPT).double(), torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    change = memory.change(Association(k, value), 1, "symmetric")
    W, b = memory.W.double(), memory.bias.double() if memory.bias is not None else 0
    torch.testing.assert_close((W + torch.outer(change.left, change.right)) @ k + b, value)
    if rule == "delta":
        torch.testing.assert_close(change.right, k / k.square().sum())
    if rule == "rome":
        C = memory.moment + 1e-3 * memory.moment.diagonal().mean() * torch.eye(256, dtype=torch.float64)

        def cost(right: Tensor) -> float:
            return float(right @ C @ right)

        # Lagrange: C R is parallel to k.
        torch.testing.assert_close(C @ change.right, k * cost(change.right))
        # Of all right factors with right·k = 1 it is the one that changes text's outputs least.
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            other = torch.randn(256, generator=generator, dtype=torch.float64)
            other = change.right + 0.01 * (other - k * (other @ k) / (k @ k))
            assert cost(other) > cost(change.right)
    if rule == "null-space":
        values, vectors = torch.linalg.eigh(memory.moment)
        loud = vectors[:, values.cumsum(0) > 0.1 * values.sum()]
        assert float((loud.T @ change.right).norm()) < 1e-9 * float(change.right.norm())


def test_the_moment_is_of_text(lm: LM):
    memory = Transformer(lm, "mlp", 1)
    read = lm.tap(memory.text[4:], ["blocks.1.mlp.out.hook_in"])["blocks.1.mlp.out.hook_in"].flatten(0, 1).double()
    torch.testing.assert_close(memory.moment, read.T @ read / (20 * 128))
    ids = memory.text[:4]
    loss = torch.nn.functional.cross_entropy(lm.logits(ids)[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
    assert memory.measures()["cross-entropy"] == pytest.approx(float(loss))


@pytest.mark.parametrize("rule", ["hebbian", "null-space"])
def test_protected_prompts_keep_their_outputs(lm: LM, rule):
    memory = Transformer(lm, "mlp", 2, rule=rule)
    cue, kept = memory.cue(PROMPT), memory.cue(OTHER)
    before = memory.recall(kept[None])
    surgeon = Surgeon(memory)
    made = surgeon.inject(
        Association(cue, memory.raising(cue, " cat")), strength=0.2, protect=[Association(kept, before[0])]
    )
    torch.testing.assert_close(memory.recall(kept[None]), before, atol=1e-5, rtol=0)
    assert made.norm == pytest.approx(0.2, abs=1e-6)
    assert made.rank == 1
    surgeon.undo()


def test_a_projected_rule_still_gives_the_value(lm: LM):
    memory = Transformer(lm, "mlp", 2, rule="delta")
    (cue, kept), surgeon = (memory.cue(prompt) for prompt in (PROMPT, OTHER)), Surgeon(memory)
    value, before = memory.raising(cue, " cat"), memory.recall(kept[None])
    surgeon.inject(Association(cue, value), protect=[Association(kept, before[0])])
    torch.testing.assert_close(memory.recall(cue[None])[0], value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(memory.recall(kept[None]), before, atol=1e-5, rtol=0)
    surgeon.undo()


def test_removing_takes_the_part_along_the_value(lm: LM):
    memory = Transformer(lm, "mlp", 4, rule="delta")
    cue = memory.cue(PROMPT)
    value = memory.recall(cue[None])[0]
    surgeon = Surgeon(memory)
    made = surgeon.remove(Association(cue, value))
    assert made.achieved
    assert abs(float(memory.recall(cue[None])[0] @ value)) < 1e-4 * float(value @ value)
    surgeon.undo()
    made = surgeon.strengthen(Association(cue, value), 1.5)
    assert made.after.support == pytest.approx(1.5 * made.before.support, rel=1e-5)
    surgeon.undo()


def pattern(lm: LM, memory: Transformer, prompt: str) -> Tensor:
    """The model's own attention from the last position."""
    seen, point = [], lm.bridge.hook_dict[f"blocks.{memory.layer}.attn.hook_pattern"]
    handle = point.add_hook(lambda tensor, hook: seen.append(tensor.detach().clone()))
    with torch.inference_mode():
        lm.bridge(torch.tensor([memory.ids(prompt)]), return_type=None)
    handle.hook.remove()
    point.fwd_hooks.remove(handle)
    return seen[0][0, memory.head, -1]


def test_where_a_head_looks(lm: LM):
    memory = Transformer(lm, "qk", 3, 3, "delta", prompt=PROMPT, watch=2)
    cue, before, surgeon = memory.cue(PROMPT), bits(lm), Surgeon(memory)
    torch.testing.assert_close(memory.looks(cue[None])[0], pattern(lm, memory, PROMPT), atol=1e-5, rtol=1e-4)
    made = surgeon.inject(Association(cue, memory.key(2)))
    torch.testing.assert_close(memory.looks(cue[None])[0], pattern(lm, memory, PROMPT), atol=1e-5, rtol=1e-4)
    assert made.achieved
    assert made.after.measures["attention"] > 0.5 > 10 * made.before.measures["attention"]
    # ΔW = α key ⊗ R, of the head's rows alone.
    changed = [name for name, p in bits(lm).items() if not torch.equal(p, before[name])]
    assert len(changed) == 1
    assert "3.attn.attention.q_proj" in changed[0].replace("._original_component", "")
    rows = (bits(lm)[changed[0]] != before[changed[0]]).any(1).nonzero().flatten().tolist()
    assert rows == [12, 13, 14, 15]
    surgeon.undo()
    x = memory.recall(torch.stack([cue, 2 * cue]))
    keys = torch.stack([memory.key(i) for i in range(9)])
    by_hand = 0.5 * x.square().sum(1) - (x @ keys.T).exp().sum(1).log()
    torch.testing.assert_close(x[0], pattern(lm, memory, PROMPT) @ keys, atol=1e-5, rtol=1e-4)
    energy = memory.energy(x)
    assert energy is not None
    torch.testing.assert_close(energy, by_hand)


def test_what_a_head_writes(lm: LM):
    memory = Transformer(lm, "ov", 3, 5, "delta")
    whole = lm.tap(memory.text[:1], ["blocks.3.attn.o.hook_in"])["blocks.3.attn.o.hook_in"]
    cue, before = memory.cue(PROMPT), bits(lm)
    assert cue.shape == (4,)
    assert memory.W.shape == (64, 4)
    assert whole.shape[-1] == 64
    surgeon, value = Surgeon(memory), memory.recall(memory.cue(OTHER)[None])[0]
    surgeon.inject(Association(cue, value))
    torch.testing.assert_close(memory.recall(cue[None])[0], value, atol=1e-5, rtol=1e-4)
    (name,) = [name for name, p in bits(lm).items() if not torch.equal(p, before[name])]
    assert (bits(lm)[name] != before[name]).any(0).nonzero().flatten().tolist() == [20, 21, 22, 23]
    surgeon.undo()


@pytest.mark.skipif(not SHARED.exists(), reason="needs the model stories260K of ../shared/data")
def test_a_model_that_turns_its_queries():
    from hsae.loading import load_lm

    llama = load_lm(str(SHARED), "cpu")
    for layer, head in ((0, 3), (4, 6)):  # eight heads share four keys
        memory = Transformer(llama, "qk", layer, head, prompt=PROMPT, watch=4)
        torch.testing.assert_close(
            memory.looks(memory.cue(PROMPT)[None])[0], pattern(llama, memory, PROMPT), atol=1e-5, rtol=1e-4
        )
    memory = Transformer(llama, "mlp", 2)
    assert memory.bias is None
    assert memory.W.shape == (64, 172)
    cue = memory.cue(PROMPT)
    out = llama.tap(torch.tensor([memory.ids(PROMPT)]), ["blocks.2.mlp.out.hook_out"])["blocks.2.mlp.out.hook_out"]
    torch.testing.assert_close(memory.recall(cue[None])[0], out[0, -1])


def test_gpt2_keeps_its_transpose(tmp_path: Path):
    from tiny_lm import save_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    from hsae.loading import load_lm

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=4)).save_pretrained(
        tmp_path
    )
    save_tokenizer(tmp_path)
    gpt2 = load_lm(str(tmp_path), "cpu")
    places: dict[Kind, str] = {"mlp": "blocks.1.mlp.out", "ov": "blocks.1.attn.o", "qk": "blocks.1.attn.q"}
    for kind, hook in places.items():
        memory = Transformer(gpt2, kind, 1, 2, prompt=PROMPT)
        ids, cue = torch.tensor([memory.ids(PROMPT)]), memory.cue(PROMPT)
        assert memory.W.shape == {"mlp": (16, 64), "ov": (16, 4), "qk": (4, 16)}[kind]
        before = gpt2.tap(ids, [f"{hook}.hook_out"])[f"{hook}.hook_out"][0, -1]
        change = torch.outer(torch.ones(memory.W.shape[0]), cue / cue.square().sum())
        memory.assign({"W": memory.W + change})
        now = gpt2.tap(ids, [f"{hook}.hook_out"])[f"{hook}.hook_out"][0, -1]
        wanted = torch.ones(16) if kind != "qk" else torch.tensor([0.0] * 8 + [1.0] * 4 + [0.0] * 4)
        torch.testing.assert_close(now - before, wanted, atol=1e-5, rtol=1e-4)
        memory.assign({"W": memory.W - change})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda lm: Transformer(lm, "mlp", 8), r"layer 8 is not in 0…7 of bundled"),
        (lambda lm: Transformer(lm, "ov", 0, 16), r"head 16 is not in 0…15"),
        (lambda lm: Transformer(lm, "mlp", 0).cue(""), r"prompt is empty"),
        (lambda lm: Transformer(lm, "mlp", 0).cue("word " * 600), r"tokens; bundled takes 512"),
        (lambda lm: Transformer(lm, "mlp", 0).token_id("dogdog"), r"'dogdog' is 4 tokens"),
        (lambda lm: Transformer(lm, "qk", 0, prompt=PROMPT).key(9), r"position 9 is not in 0…8"),
        (lambda lm: Surgeon(Transformer(lm, "mlp", 0)).survey(), r"no basins"),
    ],
)
def test_places_that_are_not_there(lm: LM, make: Callable[[LM], object], words: str):
    with pytest.raises(UserError, match=words):
        make(lm)


@pytest.mark.parametrize("asked", [["mlp", "--token", " dog", "--protect-prompts", OTHER], ["qk", "--position", "2"]])
def test_an_edit_of_a_model_is_applied_and_taken_back(
    lm: LM, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--layer", "3", "--head", "3", "--save", "e.safetensors", "--json"]
    run(["lab", "surgery", "inject", "--memory", *asked, *flags])
    made = json.loads(capsys.readouterr().out)
    assert made["achieved"]
    watched = "p(token)" if asked[0] == "mlp" else "attention"
    assert made["after"]["measures"][watched] > made["before"]["measures"][watched]
    assert [v["hits"] for v in made["after"]["protected"]] == [20] * (asked[0] == "mlp")
    kind: Kind = "mlp" if asked[0] == "mlp" else "qk"
    memory, bare, kept = Transformer(lm, kind, 3, 3, prompt=PROMPT), bits(lm), load_file("e.safetensors")
    assert torch.equal(memory.W, kept["W@before1"])
    undo = apply_edit(lm, "e.safetensors")
    assert torch.equal(memory.W, kept["W"])
    memory.watch = memory.token_id(" dog") if asked[0] == "mlp" else 2
    assert memory.measures()[watched] == pytest.approx(made["after"]["measures"][watched])
    undo()
    assert all(torch.equal(p, bare[name]) for name, p in bits(lm).items())
    run(["lab", "surgery", "diff", "--matrix", "e.safetensors"])
    assert capsys.readouterr().out.startswith(f"rank {made['rank']}, ")
    save_file({"W": torch.eye(2)}, "other.safetensors")
    for path, words in (("none", "no such file"), (__file__, "cannot be read"), ("other.safetensors", "not an edit")):
        with pytest.raises(UserError, match=words):
            apply_edit(lm, path)
