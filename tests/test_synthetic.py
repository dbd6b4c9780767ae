"""Synthetic activations are what their config says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hsae.synthetic as synthetic
from hsae.store import Store
from hsae.synthetic import HOOK, SyntheticConfig, generate, make_store
from hsae.truth import FILE, Truth

SMALL = SyntheticConfig(width=16, features=24, tokens=40_000, context=32, active=3.0, seed=5)


def small(**changes: Any) -> SyntheticConfig:
    return dataclasses.replace(SMALL, **changes)


def everything(config: SyntheticConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens, and their codes in full."""
    blocks = [(x.flatten(0, 1), codes.to_dense()) for x, codes in generate(config)]
    return torch.cat([x for x, _ in blocks]), torch.cat([codes for _, codes in blocks])


def truth(config: SyntheticConfig) -> Truth:
    found = Truth.of(Store(make_store(config)))
    assert found is not None
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_noise_and_offset_the_codes_give_the_activations(cache: Path):
    config = small(noise=0.0, offset=0.0)
    x, codes = everything(config)
    torch.testing.assert_close(codes @ truth(config).directions, x, atol=1e-6, rtol=1e-4)


def test_noise_and_offset_are_in_units_of_the_mean_strength(cache: Path):
    config = small(noise=0.2, offset=3.0)
    x, codes = everything(config)
    unit = codes[codes > 0].mean().item()
    rest = (x - codes @ truth(config).directions) / unit
    assert rest.mean(0).norm().item() == pytest.approx(3.0, abs=0.02)
    torch.testing.assert_close(rest.std(0), torch.full((16,), 0.2), atol=0, rtol=0.05)


def test_strengths_are_uniform_about_their_mean(cache: Path):
    _, codes = everything(small(spread=0.25))
    strength = codes[codes > 0] / codes[codes > 0].mean()
    assert strength.min().item() == pytest.approx(0.75, abs=0.005)
    assert strength.max().item() == pytest.approx(1.25, abs=0.005)
    assert strength.var().item() == pytest.approx(0.25**2 / 3, rel=0.03)


@pytest.mark.parametrize(
    "changes", [{}, {"decay": 0.0}, {"correlation": 0.7}, {"correlation": 1.0}, {"hierarchy": 0.4, "correlation": 0.5}]
)
def test_features_fire_at_the_rates_of_the_truth(cache: Path, changes: dict[str, float]):
    config = small(**changes)
    rate = truth(config).rate
    measured = (everything(config)[1] > 0).double().mean(0)
    # Five standard errors of a share of 40,000 tokens.
    assert ((measured - rate).abs() < 5 * (rate * (1 - rate) / config.tokens).sqrt()).all()
    assert rate.sum().item() == pytest.approx(config.active)


def test_rates_follow_zipf(cache: Path):
    rate = truth(small(decay=0.8, active=2.0)).rate
    torch.testing.assert_close(rate / rate[0], torch.arange(1.0, 25).pow(-0.8))
    flat = truth(small(decay=0.0)).rate
    torch.testing.assert_close(flat, torch.full((24,), 3 / 24))


def test_children_never_fire_without_their_parent(cache: Path):
    config = small(hierarchy=0.4)
    rate, parent = synthetic._family(config)
    assert int((parent >= 0).sum()) == round(0.4 * 24)
    on = everything(config)[1] > 0
    for child in (parent >= 0).nonzero().flatten().tolist():
        mine, over = on[:, child], on[:, parent[child]]
        assert parent[parent[child]] == -1
        assert mine.any()
        assert not (mine & ~over).any()
        assert rate[child] <= rate[parent[child]] * 0.5 + 1e-12
    # And it is the hierarchy that does it: without one no pair is like that.
    free = (everything(small())[1] > 0).float()
    both = free.T @ free
    assert (both.fill_diagonal_(0) < 0.9 * free.sum(0)[:, None]).all()


def lift(config: SyntheticConfig) -> tuple[float, float]:
    """How much more often than by chance pairs fire together: the means over pairs inside, and across, the groups."""
    on = (everything(config)[1] > 0).double()
    rate = on.mean(0)
    ratio = (on.T @ on / len(on)) / torch.outer(rate, rate)
    group = synthetic._World(config).group
    same = (group[:, None] == group).fill_diagonal_(False)
    other = group[:, None] != group
    return ratio[same].mean().item(), ratio[other].mean().item()


def test_correlation_raises_cooccurrence_within_groups_only(cache: Path):
    inside = []
    for correlation in (0.0, 0.4, 0.8):
        within, across = lift(small(correlation=correlation))
        inside.append(within)
        assert across == pytest.approx(1, abs=0.05)
    assert inside[0] == pytest.approx(1, abs=0.05)
    assert inside[1] > 1.5
    assert inside[2] > inside[1] + 0.5


def test_at_full_correlation_the_rarer_implies_the_commoner(cache: Path):
    config = small(correlation=1.0, group=24)
    on = everything(config)[1] > 0
    assert (on[:, :-1] | ~on[:, 1:]).all()


@pytest.mark.parametrize("changes", [{}, {"variance": 3.0, "offset": 20.0, "hierarchy": 0.3, "correlation": 0.5}])
def test_the_store_has_the_variance(cache: Path, changes: dict[str, float]):
    config = small(tokens=80_000, **changes)
    record = Store(make_store(config)).manifest.hooks[HOOK]
    assert record.variance == pytest.approx(config.variance, rel=0.02)
    assert record.kept == 80_000


def test_the_store_holds_what_is_generated_and_names_it(cache: Path):
    config = small(tokens=1001, active=0.5)  # 32 sequences of 32
    store = Store(make_store(config))
    x, codes = everything(config)
    (chunk,) = store.chunks(HOOK, 1000)
    assert torch.equal(chunk.activations, x.view(32, 32, 16))
    assert chunk.keep.all()
    fires = (codes > 0).any(1)
    assert 0.2 < fires.float().mean() < 0.8
    token = chunk.tokens.flatten()
    assert torch.equal(token[fires].long(), codes[fires].argmax(1))
    assert (token[~fires] == 24).all()
    assert "name" not in store.manifest.model  # no language model made it
    assert store.name == f"synthetic-{store.manifest.model['fingerprint']}"
    assert store.tokenizer is None
    assert SyntheticConfig(**store.manifest.harvest) == config


def test_the_same_config_gives_the_same_store_and_another_seed_another(cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = make_store(SMALL)
    other = make_store(small(seed=6))
    monkeypatch.setenv("HSAE_CACHE", str(cache / "again"))
    assert content(make_store(SMALL)) == content(first)
    assert first.name != other.name
    mine, others = (load_file(folder / FILE)["directions"] for folder in (first, other))
    assert not torch.allclose(mine, others)
    assert not torch.equal(
        *(Store(folder).read(Store(folder).manifest.shards[0], HOOK)[0] for folder in (first, other))
    )


def test_no_block_is_like_another():
    blocks = [codes.coalesce().indices() for _, codes in generate(SMALL)]
    assert not torch.equal(blocks[0][:, :200], blocks[1][:, :200])


def test_the_stream_can_be_entered_at_any_block():
    whole, late = list(generate(SMALL)), list(generate(SMALL, 3))
    assert len(whole) == 5
    assert len(whole[-1][0]) == 1250 - 4 * 256
    for (x, codes), (x_late, codes_late) in zip(whole[3:], late, strict=True):
        assert torch.equal(x, x_late)
        assert torch.equal(codes.to_dense(), codes_late.to_dense())


def test_a_store_that_is_there_is_left_alone(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_store(SMALL)
    before = content(folder)
    monkeypatch.setattr(synthetic, "generate", None)
    assert make_store(SMALL) == folder
    (folder / "plan.json").write_text("{}")  # a kill just after the manifest was written
    (folder / FILE).unlink()
    assert make_store(SMALL) == folder
    assert content(folder) == before


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_killed_half_way_it_goes_on(cache: Path, monkeypatch: pytest.MonkeyPatch, shards: int):
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 4 * 16 * 8192)  # one block to a shard
    whole = content(make_store(SMALL))
    assert sum(name[0].isdigit() for name in whole) == 5
    monkeypatch.setenv("HSAE_CACHE", str(cache / "again"))
    blocks = generate(SMALL)

    def killed(*place: Any):
        for _ in range(shards):
            yield next(blocks)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            make_store(SMALL)
    (folder,) = (cache / "again" / "activations").iterdir()
    assert not (folder / "manifest.json").exists()
    assert (folder / FILE).exists()
    assert len(list(folder.glob("0*.safetensors"))) == shards
    entered = []
    monkeypatch.setattr(synthetic, "generate", lambda *place: (entered.append(place[1]), generate(*place))[1])
    assert content(make_store(SMALL)) == whole
    assert entered == [shards]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("features", 0),
        ("tokens", 0),
        ("context", 0),
        ("group", 0),
        ("active", 0.0),
        ("active", 12.0),
        ("active", float("nan")),
        ("decay", -0.1),
        ("spread", 1.0),
        ("correlation", 1.1),
        ("hierarchy", 1.0),
        ("noise", -1.0),
        ("offset", float("inf")),
        ("variance", 0.0),
        ("seed", -1),
    ],
)
def test_a_bad_value_is_named(field: str, value: float):
    with pytest.raises(ValueError, match=rf"^{field} must be .*, not {value}$"):
        small(**{field: value})
