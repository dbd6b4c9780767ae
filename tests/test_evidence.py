"""Evidence on planted activations: where a latent must fire, on which token, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hsae.evidence.latent
import hsae.evidence.survey
from hsae.evidence.latent import AFTER as WIDE_AFTER
from hsae.evidence.latent import BEFORE as WIDE_BEFORE
from hsae.evidence.latent import examine
from hsae.evidence.survey import AFTER, BEFORE, CONTEXTS, Survey, cached_survey, survey
from hsae.sae import SAE
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.store import Store, StoreWriter

HOOK = "blocks.0.hook_resid_pre"
Plants = Mapping[tuple[int, int], tuple[int, float]]
"""(sequence, position) -> (latent, strength)"""


def write_store(folder: Path, tokens: Tensor, x: Tensor, keep: Tensor | None = None, shard: int = 7) -> Store:
    """A store of given tokens [sequence, position] and activations [sequence, position, width]."""
    keep = torch.ones(tokens.shape, dtype=torch.bool) if keep is None else keep
    writer = StoreWriter(folder, {"made": "by a test"}, "fp32")
    for a in range(0, len(tokens), shard):
        part = slice(a, a + shard)
        writer.write(tokens[part], {HOOK: x[part]}, {HOOK: keep[part]}, {HOOK: {}}, None)
    tables = {"model": {"fingerprint": "m"}, "tokenizer": {}, "text": {}, "harvest": {}}
    writer.finish(shard_sequences=shard, context=tokens.shape[1], **tables)
    return Store(folder)


def planted(folder: Path, plants: Plants, sequences: int = 40, context: int = 24, width: int = 4, **kwargs) -> Store:
    """A store that is zero but for the planted positions. Its token at (s, p) is 1000 s + p: it tells its own place."""
    x = torch.zeros(sequences, context, width)
    for (s, p), (latent, strength) in plants.items():
        x[s, p, latent] = strength
    tokens = 1000 * torch.arange(sequences)[:, None] + torch.arange(context)
    return write_store(folder, kwargs.pop("tokens", tokens), x, **kwargs)


def identity(width: int = 4, scale: float = 1.0) -> SAE:
    """Latent j's activation is the activation's dimension j, where positive."""
    zeros = torch.zeros(width)
    return SAE(torch.eye(width), zeros, torch.eye(width), zeros, ReLU(), scale)


def spread(latent: int = 2) -> Plants:
    """One peak in every third sequence, at another position and strength each."""
    return {(s, (5 * s + 3) % 24): (latent, 1 + ((7 * s) % 40) / 8) for s in range(0, 40, 3)}


@pytest.fixture(params=[5, 24, 1024], ids="rows={}".format)
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows encoded at a time: parts of a sequence, whole ones, several."""
    monkeypatch.setattr(hsae.evidence.survey, "ROWS", request.param)
    monkeypatch.setattr(hsae.evidence.latent, "ROWS", request.param)
    return request.param


@pytest.mark.usefixtures("rows")
def test_peaks_lead_back_to_sequence_position_token_and_window(tmp_path: Path) -> None:
    plants = spread()
    store = planted(tmp_path / "s", plants)
    expected = sorted(((v, s, p) for (s, p), (_, v) in plants.items()), key=lambda t: (-t[0], t[1]))
    found = survey(identity(), store, HOOK)
    count = len(expected)
    assert count < CONTEXTS
    got = zip(found.activation[2, :count], found.sequence[2, :count], found.position[2, :count], strict=True)
    assert [(float(a), int(s), int(p)) for a, s, p in got] == expected
    assert found.sequence[2, count:].eq(-1).all()
    assert found.activation[2, count:].eq(0).all()
    for i, (_, s, p) in enumerate(expected):
        wanted = [1000 * s + q if 0 <= q < 24 else -1 for q in range(p - BEFORE, p + AFTER + 1)]
        assert found.window[2, i].tolist() == wanted
        assert wanted[BEFORE] == 1000 * s + p
    assert found.window[2, count:].eq(-1).all()

    latent = examine(identity(), store, HOOK, 2, contexts=5)
    assert [(c.activation, c.sequence, c.position) for c in latent.contexts] == expected[:5]
    for context in latent.contexts:
        assert context.tokens[context.peak] == 1000 * context.sequence + context.position
        assert context.tokens == tuple(1000 * context.sequence + q for q in range(context.start, 24))
        assert context.start == 0
        nonzero = {i: a for i, a in enumerate(context.activations) if a}
        assert nonzero == {context.peak: context.activation}


@pytest.mark.usefixtures("rows")
def test_a_sequence_gives_one_context_at_its_highest_peak(tmp_path: Path) -> None:
    # Sequence 6 alone has more high peaks than there are places; its highest is neither its first nor its last.
    plants = {(6, p): (1, 10.0 + (30 if p == 13 else p)) for p in range(24)} | {(9, 4): (1, 3.0), (2, 0): (1, 2.0)}
    store = planted(tmp_path / "s", plants)
    found = survey(identity(), store, HOOK)
    assert found.sequence[1, :4].tolist() == [6, 9, 2, -1]
    assert found.position[1, :4].tolist() == [13, 4, 0, -1]
    assert found.activation[1, :4].tolist() == [40, 3, 2, 0]
    contexts = examine(identity(), store, HOOK, 1).contexts
    assert [(c.sequence, c.position) for c in contexts] == [(6, 13), (9, 4), (2, 0)]
    assert contexts[0].activations == tuple(10.0 + (30 if p == 13 else p) for p in range(24))


@pytest.mark.usefixtures("rows")
def test_more_sequences_than_places_keep_the_strongest_and_the_earlier_of_equals(tmp_path: Path) -> None:
    plants = {(s, 5): (0, 2.0 if s in (30, 31) else 1.0) for s in range(40)}
    store = planted(tmp_path / "s", plants)
    expected = [30, 31, *range(CONTEXTS - 2)]
    assert survey(identity(), store, HOOK).sequence[0].tolist() == expected
    assert [c.sequence for c in examine(identity(), store, HOOK, 0, contexts=CONTEXTS).contexts] == expected


@pytest.mark.usefixtures("rows")
def test_positions_that_do_not_count_are_no_evidence(tmp_path: Path) -> None:
    plants = {(3, 7): (0, 9.0), (3, 11): (0, 2.0), (8, 0): (0, 8.0), (12, 23): (3, 5.0)}
    keep = torch.ones(40, 24, dtype=torch.bool)
    keep[3, 7] = keep[8, 0] = keep[12, 23] = False
    keep[20] = False
    store = planted(tmp_path / "s", plants, keep=keep)
    found = survey(identity(), store, HOOK)
    assert found.rows.item() == 40 * 24 - 3 - 24
    assert found.firings.tolist() == [1, 0, 0, 0]
    assert found.dead == [1, 2, 3]
    assert found.sequence[0, :2].tolist() == [3, -1]
    latent = examine(identity(), store, HOOK, 0)
    assert (latent.rows, latent.firings, latent.maximum) == (40 * 24 - 27, 1, 2.0)
    (context,) = latent.contexts
    assert (context.sequence, context.position) == (3, 11)
    # The token is shown in the window all the same, with no activation.
    assert (context.tokens[7], context.activations[7]) == (3007, 0.0)
    assert [t.token for t in latent.tokens] == [3011]
    assert examine(identity(), store, HOOK, 3).firings == 0


def test_rates_means_and_maxima(tmp_path: Path) -> None:
    store = planted(tmp_path / "s", {(0, 1): (0, 1.0), (0, 2): (0, 2.0), (39, 23): (0, 6.0), (5, 5): (1, 0.5)})
    found = survey(identity(), store, HOOK)
    assert found.rate[:2].tolist() == pytest.approx([3 / 960, 1 / 960])
    assert found.mean.tolist() == [3.0, 0.5, 0.0, 0.0]
    assert found.maximum.tolist() == [6.0, 0.5, 0.0, 0.0]
    assert found.most_active(3) == [0, 1]
    latent = examine(identity(), store, HOOK, 0)
    assert (latent.rate, latent.mean, latent.maximum) == (pytest.approx(3 / 960), 3.0, 6.0)


def test_the_scale_is_part_of_the_sae(tmp_path: Path) -> None:
    store = planted(tmp_path / "s", {(4, 4): (0, 8.0)})
    assert survey(identity(scale=0.25), store, HOOK).maximum[0] == 2.0
    assert examine(identity(scale=0.25), store, HOOK, 0).maximum == 2.0


def test_a_latent_that_never_fires(tmp_path: Path) -> None:
    latent = examine(identity(), planted(tmp_path / "s", {}), HOOK, 1)
    assert (latent.firings, latent.rate, latent.mean, latent.maximum) == (0, 0.0, 0.0, 0.0)
    assert (latent.histogram.counts, latent.contexts, latent.tokens) == ((), (), ())


def test_windows_reach_so_far_and_no_further_than_the_sequence(tmp_path: Path) -> None:
    context = WIDE_BEFORE + WIDE_AFTER + 40
    plants = {(0, 0): (0, 4.0), (1, context - 1): (0, 3.0), (2, WIDE_BEFORE + 10): (0, 2.0)}
    start, end, middle = examine(identity(), planted(tmp_path / "s", plants, 3, context), HOOK, 0).contexts
    assert start.tokens == tuple(range(WIDE_AFTER + 1))
    assert end.tokens == tuple(1000 + p for p in range(context - 1 - WIDE_BEFORE, context))
    assert middle.tokens == tuple(2000 + p for p in range(10, WIDE_BEFORE + 10 + WIDE_AFTER + 1))
    assert [c.tokens[c.peak] for c in (start, end, middle)] == [0, 1000 + context - 1, 2000 + WIDE_BEFORE + 10]


def test_histogram_bins_are_half_open_and_hold_every_firing(tmp_path: Path) -> None:
    # 1/32, 2/32 … 32/32 are the upper edges of 32 bins below 1; 10 more lie inside the bin that ends at 3/32.
    values = [(i + 1) / 32 for i in range(32)] + [2.5 / 32] * 10
    for order in (values, values[::-1]):  # growing range, and a range that is right from the start
        plants = {(i, 3): (0, value) for i, value in enumerate(order)}
        store = planted(tmp_path / f"s{order[0]}", plants, sequences=42, shard=6)
        histogram = examine(identity(), store, HOOK, 0).histogram
        assert histogram.width == 1 / 32
        assert histogram.counts == (1, 1, 11, *[1] * 29)


def test_histogram_ends_with_the_bin_of_the_maximum(tmp_path: Path) -> None:
    store = planted(tmp_path / "s", {(0, 0): (0, 0.01), (1, 0): (0, 5.1), (30, 2): (0, 20.5)})
    histogram = examine(identity(), store, HOOK, 0).histogram
    assert histogram.width == 1.0
    assert [i for i, count in enumerate(histogram.counts) if count] == [0, 5, 20]
    assert len(histogram.counts) == 21


def test_tokens_it_fires_on(tmp_path: Path) -> None:
    tokens = torch.full((40, 24), 5)
    tokens[:, 10], tokens[:, 11] = 70_000, 8
    plants = {(s, 10): (0, 3.0) for s in range(10)} | {(s, 11): (0, 0.5) for s in range(20)} | {(0, 0): (1, 1.0)}
    uses = examine(identity(), planted(tmp_path / "s", plants, tokens=tokens), HOOK, 0).tokens
    assert [(u.token, u.firings, u.occurrences, u.mass) for u in uses] == [(70_000, 10, 40, 0.75), (8, 20, 40, 0.25)]


def test_selectivity_is_the_share_of_one_token_among_the_strongest_contexts(tmp_path: Path) -> None:
    tokens = torch.zeros(40, 24, dtype=torch.int64)
    tokens[:, 3], tokens[:4, 3], tokens[4:8, 3] = 1, 2, 3
    plants = {(s, 3): (0, 1.0 + s / 100 * (s < 16)) for s in range(40)}  # strongest: sequences 1 … 15, then 0 with 16 …
    plants |= {(s, 5): (1, 1.0) for s in range(CONTEXTS)} | {(s, 6): (2, 1.0) for s in range(CONTEXTS - 1)}
    plants |= {(s, 7): (3, 1.0) for s in range(CONTEXTS + 1)}
    found = survey(identity(), planted(tmp_path / "s", plants, tokens=tokens), HOOK)
    # Latent 0: tokens 2, 3 and 1 on 4, 4 and 8 of the 16; latent 2 fires in too few sequences to say.
    assert found.selectivity.tolist() == [8 / 16, 1.0, 0.0, 1.0]
    assert found.most_selective(8) == [3, 1, 0]
    assert found.most_selective(1) == [3]
    assert found.most_active(8) == [0, 3, 1, 2]


@pytest.mark.parametrize("variant", [ReLU(), TopK(k=3)], ids=["relu", "topk"])
@pytest.mark.usefixtures("rows")
def test_survey_examine_and_a_count_by_hand_agree(tmp_path: Path, variant: ReLU | TopK) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(25, 31, 8, generator=random)
    tokens = torch.randint(0, 50, (25, 31), generator=random)
    keep = torch.rand(25, 31, generator=random) > 0.2
    W = torch.randn(20, 8, generator=random)
    bias = torch.randn(20, generator=random) - 2
    bias[11] = -100
    sae = SAE(W, bias, W, torch.zeros(8), variant, 0.5)
    store = write_store(tmp_path / "s", tokens, x, keep)
    found = survey(sae, store, HOOK)
    code = sae.encode(x) * keep[:, :, None]
    for latent in (0, 7, 11, 19):
        one = examine(sae, store, HOOK, latent, contexts=CONTEXTS, tokens=50)
        places = [(-float(code[s, :, latent].max()), s, int(code[s, :, latent].argmax())) for s in range(25)]
        places = sorted(place for place in places if place[0] < 0)[:CONTEXTS]
        wanted = [(s, p) for _, s, p in places]
        assert [(c.sequence, c.position) for c in one.contexts] == wanted
        pairs = zip(found.sequence[latent].tolist(), found.position[latent].tolist(), strict=True)
        assert list(pairs)[: len(wanted)] == wanted
        fires = code[:, :, latent] > 0
        assert one.firings == int(found.firings[latent]) == int(fires.sum())
        assert one.rows == int(found.rows) == int(keep.sum())
        assert sum(one.histogram.counts) == one.firings
        mean = float(code[:, :, latent][fires].double().mean()) if fires.any() else 0.0
        assert one.mean == pytest.approx(mean, rel=1e-5)
        assert float(found.mean[latent]) == pytest.approx(mean, rel=1e-5)
        assert one.maximum == pytest.approx(float(code[:, :, latent].max()), rel=1e-5)
        assert sum(use.firings for use in one.tokens) == one.firings
    assert 11 in found.dead


def test_a_dense_latent_is_less_selective_than_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsae.evidence.survey.DENSE", 0.1)
    often = {(s, p): (0, 9.0 if p == 7 else 1.0) for s in range(40) for p in range(7, 10)}  # on 12.5% of positions
    seldom = {(s, p): (1, 9.0 if p == 3 else 1.0) for s in range(40) for p in range(3, 5)}  # on 8.3%
    tokens = torch.arange(24).expand(40, 24).contiguous()
    found = survey(identity(), planted(tmp_path / "s", often | seldom, tokens=tokens), HOOK)
    assert found.selectivity.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found.most_selective(4) == [1, 0]
    assert found.most_active(4) == [0, 1]


def test_progress_counts_every_position_once(tmp_path: Path) -> None:
    store = planted(tmp_path / "s", {(0, 0): (0, 1.0)})
    passed: list[int] = []
    survey(identity(), store, HOOK, passed.append)
    assert sum(passed) == 40 * 24
    examine(identity(), store, HOOK, 0, advance=passed.append)
    assert sum(passed) == 2 * 40 * 24


class TestCache:
    """The survey beside a run is used when it is of the same SAE, store and hook, and made anew when it is not."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return planted(tmp_path / "s", spread())

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[None]:
        """Grows by one for every survey made."""
        made: list[None] = []

        def counted(*args: object) -> Survey:
            made.append(None)
            return survey(*args)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(hsae.evidence.survey, "survey", counted)
        return made

    def test_is_reused(self, tmp_path: Path, store: Store, made: list[None]) -> None:
        path = tmp_path / "evidence" / "a.safetensors"
        first = cached_survey(path, identity(), store, HOOK)
        second = cached_survey(path, identity(), store, HOOK)
        assert len(made) == 1
        assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
        for name in vars(first):
            assert torch.equal(getattr(first, name), getattr(second, name))

    def test_is_made_anew_for_another_sae_or_store(self, tmp_path: Path, store: Store, made: list[None]) -> None:
        path = tmp_path / "a.safetensors"
        cached_survey(path, identity(), store, HOOK)
        assert cached_survey(path, identity(scale=2.0), store, HOOK).maximum[2] == 2 * max(
            v for _, v in spread().values()
        )
        other = planted(tmp_path / "t", {(0, 0): (0, 1.0)})
        assert cached_survey(path, identity(scale=2.0), other, HOOK).dead == [1, 2, 3]
        assert len(made) == 3

    @pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"\xff" * 100, lambda data: b""])
    def test_is_made_anew_when_damaged(self, tmp_path: Path, store: Store, made: list[None], damage) -> None:
        path = tmp_path / "a.safetensors"
        first = cached_survey(path, identity(), store, HOOK)
        path.write_bytes(damage(path.read_bytes()))
        assert torch.equal(cached_survey(path, identity(), store, HOOK).window, first.window)
        cached_survey(path, identity(), store, HOOK)
        assert len(made) == 2

    def test_is_not_needed(self, tmp_path: Path, store: Store) -> None:
        (tmp_path / "file").write_text("a file where a folder is wanted")
        assert cached_survey(tmp_path / "file" / "a.safetensors", identity(), store, HOOK).firings[2] == len(spread())
