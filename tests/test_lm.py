"""The tap gives what TransformerLens gives, computes nothing above it, and says clearly what it cannot do."""

from pathlib import Path

import pytest
import torch
from tiny_lm import make_model, save_model

from hsae.device import choose_device
from hsae.errors import UserError
from hsae.lm import LM
from hsae.loading import files_fingerprint, load_lm

HOOKS = (
    "blocks.0.hook_resid_pre",
    "blocks.1.mlp.hook_post",
    "blocks.2.attn.hook_z",
    "blocks.2.hook_attn_out",
    "blocks.3.hook_resid_pre",
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load_lm(str(make_model(tmp_path_factory.mktemp("model"))), device="cpu")


def tokens(sequences: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 300, (sequences, length), generator=torch.Generator().manual_seed(1))


def test_tap_equals_run_with_cache(lm: LM) -> None:
    taken = lm.tap(tokens(), HOOKS)
    with torch.inference_mode():
        _, cache = lm.bridge.run_with_cache(tokens())
    assert tuple(taken) == HOOKS
    for hook in HOOKS:
        torch.testing.assert_close(taken[hook], cache[hook].flatten(2), atol=1e-6, rtol=0)


def test_one_hook_alone_gives_the_same(lm: LM) -> None:
    together = lm.tap(tokens(), HOOKS)
    for hook in HOOKS:
        assert torch.equal(lm.tap(tokens(), (hook,))[hook], together[hook])


def test_per_head_activations_are_flattened(lm: LM) -> None:
    assert lm.widths(HOOKS) == dict(zip(HOOKS, (16, 32, 16, 16, 16), strict=True))
    assert lm.tap(tokens(), ("blocks.2.attn.hook_z",))["blocks.2.attn.hook_z"].shape == (3, 20, 16)


def test_layers_above_the_last_hook_are_not_computed(lm: LM) -> None:
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, block in ((n, lm.bridge.blocks[n]) for n in range(4))
    ]
    lm.tap(tokens(), ("blocks.1.hook_resid_pre", "blocks.0.mlp.hook_post"))
    for handle in handles:
        handle.remove()
    assert 3 not in ran
    assert 2 not in ran
    assert 0 in ran


def test_a_tap_leaves_the_bridge_as_it_was(lm: LM) -> None:
    with torch.inference_mode():
        before = lm.bridge(tokens())
    lm.tap(tokens(), HOOKS)
    assert all(not point.fwd_hooks for point in lm.bridge.hook_dict.values())
    with torch.inference_mode():
        assert torch.equal(lm.bridge(tokens()), before)


def test_padding_on_the_right_changes_nothing_before_it(lm: LM) -> None:
    padded = tokens().clone()
    padded[:, 12:] = 0
    hook = "blocks.3.hook_resid_pre"
    torch.testing.assert_close(
        lm.tap(padded, (hook,))[hook][:, :12], lm.tap(tokens(), (hook,))[hook][:, :12], atol=1e-6, rtol=0
    )


def test_unknown_hook_names_the_nearest(lm: LM) -> None:
    with pytest.raises(UserError, match=r"no hook point 'blocks.4.hook_resid_pre'.*blocks.3.hook_resid_pre"):
        lm.tap(tokens(), ("blocks.4.hook_resid_pre",))


def test_a_hook_that_never_fires_is_an_error(lm: LM) -> None:
    with pytest.raises(UserError, match=r"blocks.0.attn.hook_result: .*never fires"):
        lm.tap(tokens(), ("blocks.0.attn.hook_result", "blocks.0.hook_resid_pre"))
    assert all(not point.fwd_hooks for point in lm.bridge.hook_dict.values())


@pytest.mark.parametrize("hook", ["blocks.0.attn.hook_pattern", "embed.hook_in"])
def test_no_row_for_each_position_is_an_error(lm: LM, hook: str) -> None:
    with pytest.raises(UserError, match="not one vector for each position"):
        lm.widths((hook,))


def test_fingerprint_follows_the_weights(lm: LM, tmp_path: Path) -> None:
    same = make_model(tmp_path / "same")
    assert load_lm(str(same), device="cpu").fingerprint == lm.fingerprint
    assert files_fingerprint(str(same)) == files_fingerprint(lm.name)
    other = make_model(tmp_path / "other")
    save_model(other, intermediate_size=48)
    assert load_lm(str(other), device="cpu").fingerprint != lm.fingerprint
    assert files_fingerprint(str(other)) != files_fingerprint(lm.name)


def test_what_an_lm_says_of_itself(lm: LM) -> None:
    end = lm.tokenizer.eos_token_id
    assert (lm.vocabulary, lm.context_limit, lm.special_ids) == (300, 64, (end,))


def test_loading_is_quiet(lm: LM, capfd: pytest.CaptureFixture[str]) -> None:
    load_lm(lm.name, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing there"):
        load_lm(str(tmp_path / "no"))
    with pytest.raises(UserError, match=r"no config\.json"):
        load_lm(str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"GGUFnot")
    with pytest.raises(UserError, match=r"x\.gguf"):
        load_lm(str(tmp_path / "x.gguf"))


def test_a_device_that_is_not_there() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="device 'tpu' is not there"):
        choose_device("tpu")
