"""Evidence on planted activations: where a latent must fire, on which token, and nowhere else."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hsae.evidence.build
from hsae.errors import UserError
from hsae.evidence.build import Passing, lens
from hsae.evidence.draws import Together, nearest
from hsae.evidence.entries import Encoder, Entries
from hsae.evidence.gathered import SLOTS, Gathered, Passage, priority
from hsae.evidence.index import Index
from hsae.evidence.latent import AFTER, BEFORE, QUANTILES, RANDOM, SAMPLES, TOP, WINDOW
from hsae.kernels import native
from hsae.sae import SAE
from hsae.sae.batchtopk import BatchTopK
from hsae.sae.gated import Gated
from hsae.sae.jumprelu import JumpReLU
from hsae.sae.matryoshka import Matryoshka
from hsae.sae.relu import ReLU
from hsae.sae.topk import TopK
from hsae.store import Store, StoreWriter
from hsae.unembedding import Unembedding

HOOK = "blocks.0.hook_resid_pre"
Plants = Mapping[tuple[int, int], tuple[int, float]]
"""(sequence, position) -> (latent, strength)"""


def write_store(folder: Path, tokens: Tensor, x: Tensor, keep: Tensor | None = None, shard: int = 7) -> Store:
    """A store of given tokens [sequence, position] and activations [sequence, position, width]."""
    keep = torch.ones(tokens.shape, dtype=torch.bool) if keep is None else keep
    writer = StoreWriter(folder, {"made": "by a test"}, "fp32")
    for index, a in enumerate(range(0, len(tokens), shard)):
        part = slice(a, a + shard)
        writer.write(index, tokens[part], {HOOK: x[part]}, {HOOK: keep[part]}, {HOOK: {}})
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


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With compiled code and without."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda name: None)
        monkeypatch.setattr("hsae.kernels.sparse.load", lambda name: None)
    return request.param


@pytest.fixture(params=[1, 100, 16384], ids="rows={}".format)
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows encoded at a time: a sequence, several, all."""
    monkeypatch.setattr(hsae.evidence.build, "ROWS", request.param)
    return request.param


def indexed(sae: SAE, store: Store) -> Index:
    """The index of an SAE that is in no run."""
    passing = Passing(sae, store, HOOK)
    assert sum(passing.go()) == store.manifest.tokens
    path = Path(tempfile.mkdtemp(dir=store.folder)) / "index.safetensors"
    save_file(passing.arrays(), path)
    return Index(path)


@pytest.mark.usefixtures("rows", "kernels")
def test_peaks_lead_back_to_sequence_position_token_and_window(tmp_path: Path) -> None:
    plants = spread()
    expected = sorted(((v, s, p) for (s, p), (_, v) in plants.items()), key=lambda t: (-t[0], t[1]))
    found = indexed(identity(), planted(tmp_path / "s", plants)).latent(2)
    assert len(expected) < TOP
    assert [(c.activation, c.sequence, c.position) for c in found.top] == expected
    assert sorted((c.activation, c.sequence, c.position) for c in found.samples) == sorted(expected)
    for context in (*found.top, *found.samples):
        s, p = context.sequence, context.position
        assert context.tokens == tuple(1000 * s + q for q in range(max(0, p - BEFORE), min(24, p + AFTER + 1)))
        assert context.tokens[context.peak] == 1000 * s + p
        assert context.start == max(0, p - BEFORE)
        assert {i: a for i, a in enumerate(context.activations) if a} == {context.peak: context.activation}


@pytest.mark.usefixtures("rows", "kernels")
def test_a_sequence_gives_one_context_at_its_highest_peak(tmp_path: Path) -> None:
    # Sequence 6 alone has more high peaks than there are places; its highest is neither its first nor its last.
    plants = {(6, p): (1, 10.0 + (30 if p == 13 else p)) for p in range(24)} | {(9, 4): (1, 3.0), (2, 0): (1, 2.0)}
    plants[9, 8] = (1, 3.0)  # of equal peaks the first
    found = indexed(identity(), planted(tmp_path / "s", plants)).latent(1)
    assert [(c.sequence, c.position, c.activation) for c in found.top] == [(6, 13, 40), (9, 4, 3), (2, 0, 2)]
    assert found.top[0].activations == tuple(10.0 + (30 if p == 13 else p) for p in range(24))
    assert sorted(c.sequence for c in found.samples) == [2, 6, 9]


@pytest.mark.usefixtures("rows", "kernels")
def test_more_sequences_than_places_keep_the_strongest_and_the_earlier_of_equals(tmp_path: Path) -> None:
    plants = {(s, 5): (0, 2.0 if s in (30, 31) else 1.0) for s in range(40)}
    found = indexed(identity(), planted(tmp_path / "s", plants)).latent(0)
    assert [c.sequence for c in found.top] == [30, 31, *range(TOP - 2)]
    drawn = [c.sequence for c in found.samples]
    assert len(drawn) == SAMPLES == len(set(drawn))


@pytest.mark.usefixtures("rows", "kernels")
def test_positions_that_do_not_count_are_no_evidence(tmp_path: Path) -> None:
    plants = {(3, 7): (0, 9.0), (3, 11): (0, 2.0), (8, 0): (0, 8.0), (12, 23): (3, 5.0)}
    keep = torch.ones(40, 24, dtype=torch.bool)
    keep[3, 7] = keep[8, 0] = keep[12, 23] = False
    keep[20] = False
    index = indexed(identity(), planted(tmp_path / "s", plants, keep=keep))
    assert index.rows == 40 * 24 - 3 - 24
    assert index.firings.tolist() == [1, 0, 0, 0]
    found = index.latent(0)
    assert (found.rows, found.firings, found.maximum) == (40 * 24 - 27, 1, 2.0)
    (context,) = found.top
    assert (context.sequence, context.position) == (3, 11)
    # The token is shown in the window all the same, with no activation.
    assert (context.tokens[7], context.activations[7]) == (3007, 0.0)
    assert [t.token for t in found.tokens] == [3011]
    # 39 sequences have a position that counts, and each gives one window.
    assert len(index.random()) == 39


@pytest.mark.usefixtures("kernels")
def test_rates_means_and_maxima(tmp_path: Path) -> None:
    store = planted(tmp_path / "s", {(0, 1): (0, 1.0), (0, 2): (0, 2.0), (39, 23): (0, 6.0), (5, 5): (1, 0.5)})
    index = indexed(identity(), store)
    assert index.rate[:2].tolist() == pytest.approx([3 / 960, 1 / 960])
    assert index.mean.tolist() == [3.0, 0.5, 0.0, 0.0]
    assert index.maximum.tolist() == [6.0, 0.5, 0.0, 0.0]
    assert index.most_active(3) == [0, 1]
    found = index.latent(0)
    assert (found.rate, found.mean, found.maximum) == (pytest.approx(3 / 960), 3.0, 6.0)


def test_the_scale_is_part_of_the_sae(tmp_path: Path) -> None:
    store = planted(tmp_path / "s", {(4, 4): (0, 8.0)})
    assert indexed(identity(scale=0.25), store).maximum[0] == 2.0


@pytest.mark.usefixtures("kernels")
def test_a_latent_that_never_fires(tmp_path: Path) -> None:
    found = indexed(identity(), planted(tmp_path / "s", {})).latent(1)
    assert (found.firings, found.rate, found.mean, found.maximum) == (0, 0.0, 0.0, 0.0)
    assert (found.histogram.counts, found.top, found.samples, found.tokens) == ((), (), (), ())
    assert found.quantiles() == ()


def test_a_latent_that_is_not_there(tmp_path: Path) -> None:
    index = indexed(identity(), planted(tmp_path / "s", {}))
    for latent in (-1, 4):
        with pytest.raises(UserError, match=f"latent {latent} is not in 0…3"):
            index.latent(latent)


def test_windows_reach_so_far_and_no_further_than_the_sequence(tmp_path: Path) -> None:
    context = BEFORE + AFTER + 40
    plants = {(0, 0): (0, 4.0), (1, context - 1): (0, 3.0), (2, BEFORE + 10): (0, 2.0)}
    start, end, middle = indexed(identity(), planted(tmp_path / "s", plants, 3, context)).latent(0).top
    assert start.tokens == tuple(range(AFTER + 1))
    assert end.tokens == tuple(1000 + p for p in range(context - 1 - BEFORE, context))
    assert middle.tokens == tuple(2000 + p for p in range(10, BEFORE + 10 + AFTER + 1))
    assert [c.tokens[c.peak] for c in (start, end, middle)] == [0, 1000 + context - 1, 2000 + BEFORE + 10]


@pytest.mark.usefixtures("rows", "kernels")
def test_histogram_bins_are_half_open_and_hold_every_firing(tmp_path: Path) -> None:
    # 1/32, 2/32 … 32/32 are the upper edges of 32 bins below 1; 10 more lie inside the bin that ends at 3/32.
    values = [(i + 1) / 32 for i in range(32)] + [2.5 / 32] * 10
    for order in (values, values[::-1]):  # growing range, and a range that is right from the start
        plants = {(i, 3): (0, value) for i, value in enumerate(order)}
        store = planted(tmp_path / f"s{order[0]}", plants, sequences=42, shard=6)
        histogram = indexed(identity(), store).latent(0).histogram
        assert histogram.width == 1 / 32
        assert histogram.counts == (1, 1, 11, *[1] * 29)


@pytest.mark.usefixtures("rows", "kernels")
def test_histogram_ends_with_the_bin_of_the_maximum(tmp_path: Path) -> None:
    # The range grows by a factor of 2048: more doublings than there are bins to halve.
    store = planted(tmp_path / "s", {(0, 0): (0, 0.01), (1, 0): (0, 5.1), (30, 2): (0, 20.5)})
    histogram = indexed(identity(), store).latent(0).histogram
    assert histogram.width == 1.0
    assert [i for i, count in enumerate(histogram.counts) if count] == [0, 5, 20]
    assert len(histogram.counts) == 21
    # The last bin becomes the first at once: 2^-6 to 2^3 is nine doublings, and five would do.
    store = planted(tmp_path / "t", {(0, 0): (0, 0.0156), (1, 0): (0, 5.1)})
    counts = indexed(identity(), store).latent(0).histogram.counts
    assert [i for i, count in enumerate(counts) if count] == [0, 20]


@pytest.mark.usefixtures("rows", "kernels")
def test_tokens_it_fires_on(tmp_path: Path) -> None:
    tokens = torch.full((40, 24), 5)
    tokens[:, 10], tokens[:, 11] = 70_000, 8
    plants = {(s, 10): (0, 3.0) for s in range(10)} | {(s, 11): (0, 0.5) for s in range(20)} | {(0, 0): (1, 1.0)}
    found = indexed(identity(), planted(tmp_path / "s", plants, tokens=tokens)).latent(0)
    uses = [(u.token, u.firings, u.occurrences, u.mass) for u in found.tokens]
    assert uses == [(70_000, 10, 40, 0.75), (8, 20, 40, 0.25)]
    assert found.doubt == 0


@pytest.mark.usefixtures("kernels")
def test_more_tokens_than_can_be_counted_are_given_up_with_a_bound(tmp_path: Path) -> None:
    # Every position has a token of its own but for token 1, which has most of the activation, in every sequence.
    sequences, context = 4, SLOTS
    tokens = 10 + torch.arange(sequences * context).view(sequences, context)
    tokens[:, 0] = 1
    plants = {(s, p): (0, 50.0 if p == 0 else 1.0 + p / 1000) for s in range(sequences) for p in range(context)}
    store = planted(tmp_path / "s", plants, sequences, context, tokens=tokens, shard=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hsae.evidence.build, "ROWS", 1)  # a sequence at a time, so that tables overflow time and again
        found = indexed(identity(), store).latent(0)
    total = sum(strength for _, strength in plants.values())
    assert (found.tokens[0].token, found.tokens[0].firings) == (1, 4)
    assert found.tokens[0].mass == pytest.approx(200 / total)
    # In each of the last three sequences the table overflowed; what was given up then was below 1.3 each time.
    assert 3.0 <= found.doubt * total <= 3 * 1.3
    assert found.firings == sequences * context


@pytest.mark.usefixtures("kernels")
def test_samples_are_an_even_draw_from_all_firings(tmp_path: Path) -> None:
    # 300 sequences; the latent fires once in each, by the sequence's number.
    plants = {(s, (7 * s) % 24): (0, 1.0 + s) for s in range(300)}
    found = indexed(identity(), planted(tmp_path / "s", plants, sequences=300)).latent(0)
    drawn = [c.sequence for c in found.samples]
    assert drawn == sorted(drawn, reverse=True)
    assert len(drawn) == SAMPLES
    # Of an even draw of 30 numbers below 300 the mean is 149.5 with a standard deviation of 15.
    assert abs(np.mean(drawn) - 149.5) < 45
    parts = found.quantiles()
    assert [len(part) for part in parts] == [SAMPLES // QUANTILES] * QUANTILES
    assert list(itertools.chain(*parts)) == list(found.samples)


def test_priorities_are_even_and_told_apart_by_salt() -> None:
    numbers = torch.arange(100_000)
    drawn = [priority(numbers, salt).double() / 2**63 for salt in (-2, -1, 0, 1, 3199)]
    for one in drawn:
        assert float(one.min()) >= 0
        counts = torch.histc(one, 20, 0, 1)
        assert float((counts - 5000).square().sum() / 5000) < 50  # chi-square, 19 degrees of freedom
    for one, other in itertools.combinations(drawn, 2):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.015


@pytest.mark.usefixtures("kernels")
def test_selectivity_is_the_share_of_one_token_among_the_strongest_contexts(tmp_path: Path) -> None:
    tokens = torch.zeros(40, 24, dtype=torch.int64)
    tokens[:, 3], tokens[:4, 3], tokens[4:8, 3] = 1, 2, 3
    plants = {(s, 3): (0, 1.0 + s / 100 * (s < 16)) for s in range(40)}  # strongest: sequences 1 … 15, then 0 with 16 …
    plants |= {(s, 5): (1, 1.0) for s in range(TOP)} | {(s, 6): (2, 1.0) for s in range(TOP - 1)}
    plants |= {(s, 7): (3, 1.0) for s in range(TOP + 1)}
    index = indexed(identity(), planted(tmp_path / "s", plants, tokens=tokens))
    # Latent 0: tokens 2, 3 and 1 on 4, 4 and 8 of the 16; latent 2 fires in too few sequences to say.
    assert index.selectivity.tolist() == [8 / 16, 1.0, 0.0, 1.0]
    assert index.most_selective(8) == [3, 1, 0]
    assert index.most_selective(1) == [3]
    assert index.most_active(8) == [0, 3, 1, 2]


def test_a_dense_latent_is_less_selective_than_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsae.evidence.index.DENSE", 0.1)
    often = {(s, p): (0, 9.0 if p == 7 else 1.0) for s in range(40) for p in range(7, 10)}  # on 12.5% of positions
    seldom = {(s, p): (1, 9.0 if p == 3 else 1.0) for s in range(40) for p in range(3, 5)}  # on 8.3%
    tokens = torch.arange(24).expand(40, 24).contiguous()
    index = indexed(identity(), planted(tmp_path / "s", often | seldom, tokens=tokens))
    assert index.selectivity.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert index.most_selective(4) == [1, 0]
    assert index.most_active(4) == [0, 1]


def random_store(folder: Path) -> tuple[Store, Tensor, Tensor, Tensor]:
    """A store of noise: it, its tokens, its activations, the positions that count."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(25, 31, 8, generator=random)
    tokens = torch.randint(0, 50, (25, 31), generator=random)
    keep = torch.rand(25, 31, generator=random) > 0.2
    return write_store(folder, tokens, x, keep), tokens, x, keep


def random_sae(variant: ReLU | TopK) -> SAE:
    random = torch.Generator().manual_seed(4)
    W, bias = torch.randn(20, 8, generator=random), torch.randn(20, generator=random) - 2
    bias[11] = -100
    return SAE(W, bias, W, torch.zeros(8), variant, 0.5)


@pytest.mark.parametrize("variant", [ReLU(), TopK(k=3)], ids=["relu", "topk"])
@pytest.mark.usefixtures("rows", "kernels")
def test_everything_agrees_with_a_count_by_hand(tmp_path: Path, variant: ReLU | TopK) -> None:
    store, tokens, x, keep = random_store(tmp_path / "s")
    sae = random_sae(variant)
    index, code = indexed(sae, store), sae.encode(x) * keep[:, :, None]
    for latent in (0, 7, 11, 19):
        one, own = index.latent(latent), code[:, :, latent]
        places = sorted((-float(own[s].max()), s, int(own[s].argmax())) for s in range(25))
        wanted = [(s, p) for worth, s, p in places if worth < 0][:TOP]
        assert [(c.sequence, c.position) for c in one.top] == wanted
        for context in (*one.top, *one.samples):
            where = slice(context.start, context.start + len(context.tokens))
            assert list(context.tokens) == tokens[context.sequence, where].tolist()
            assert context.activations == pytest.approx(own[context.sequence, where].tolist(), abs=1e-5)
            assert context.activation > 0
        fires = own > 0
        assert len(one.samples) == int(fires.any(1).sum())
        assert one.firings == int(fires.sum())
        assert one.rows == int(keep.sum())
        assert sum(one.histogram.counts) == one.firings
        assert one.mean == pytest.approx(float(own[fires].double().mean()) if fires.any() else 0.0, rel=1e-5)
        assert one.maximum == pytest.approx(float(own.max()), rel=1e-5)
        mass = torch.zeros(50).index_add_(0, tokens.flatten(), own.flatten()) / own.sum().clamp(min=1e-9)
        assert [use.token for use in one.tokens] == mass.argsort(descending=True)[: len(one.tokens)].tolist()
        for use in one.tokens:
            assert use.firings == int((fires & (tokens == use.token)).sum())
            assert use.occurrences == int((keep & (tokens == use.token)).sum())
            assert use.mass == pytest.approx(float(mass[use.token]), abs=1e-5)
        # The windows that were drawn are the store's, with all that fires in them.
        inside = index.in_random(latent)
        assert inside.shape == (25, WINDOW)
        for row, sequence in enumerate(index.array("random_sequence").tolist()):
            start = int(index.array("random_position")[row]) - BEFORE
            for column in range(WINDOW):
                there = 0 <= start + column < 31
                assert index.random()[row, column] == (tokens[sequence, start + column] if there else -1)
                expected = float(own[sequence, start + column]) if there else 0.0
                assert inside[row, column] == pytest.approx(expected, abs=1e-5)
    assert index.firings[11] == 0


@pytest.mark.usefixtures("kernels")
def test_latents_that_fire_together(tmp_path: Path) -> None:
    store, _, x, keep = random_store(tmp_path / "s")
    sae = random_sae(ReLU())
    index, fires = indexed(sae, store), (sae.encode(x)[keep] > 0).double()
    phi = torch.corrcoef(fires.T).nan_to_num(-1).fill_diagonal_(-1)
    for latent in range(20):
        found = index.latent(latent).coactive
        order = phi[latent].argsort(descending=True)[:12].tolist()
        assert [one.latent for one in found] == [other for other in order if phi[latent, other] > 0]
        for one in found:
            assert one.correlation == pytest.approx(float(phi[latent, one.latent]), abs=1e-5)
            share = float((fires[:, latent] * fires[:, one.latent]).sum() / fires[:, latent].sum())
            assert one.share == pytest.approx(share, rel=1e-5)
    assert index.latent(11).coactive == ()


def test_tokens_drawn_for_co_activity_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsae.evidence.draws.ENTRIES", 1000)
    together, random = Together(), torch.Generator().manual_seed(0)
    sae = random_sae(ReLU())
    encode, every = Encoder(sae), []
    for first in range(0, 400, 40):
        x, keep = torch.randn(40 * 25, 8, generator=random), torch.ones(40, 25, dtype=torch.bool)
        entries = encode(x)
        together.add(entries, Passage(first, torch.zeros(40, 25, dtype=torch.int64), keep))
        every.append(entries.count)
        assert len(together.latent) <= 1000
        assert int(together.count.sum()) == len(together.latent)
    # What was drawn is what the limit says, whatever was drawn and given up on the way.
    drawn = priority(torch.arange(400 * 25), -2) <= together.limit
    assert together.count.tolist() == torch.cat(every)[drawn].tolist()
    assert len(together.count) > 20


def test_nearest_decoder_directions(tmp_path: Path) -> None:
    W = torch.tensor([[1.0, 0.0], [2.0, 0.2], [0.0, 0.0], [-1.0, 0.0], [3.0, 3.0]])
    near, cosine = nearest(W)
    assert near[0, :4].tolist() == [1, 4, 3, -1]
    assert cosine[0, :3].tolist() == pytest.approx([1 / 1.01**0.5, 0.5**0.5, -1.0], abs=1e-6)
    assert near[2].eq(-1).all()
    assert near.shape == (5, 12)


def test_logit_lens_of_directions() -> None:
    W = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    directions = torch.tensor([[0.0, 10.0, 0.0], [-1.0, 0.0, 1.0]])
    plain = lens(directions, Unembedding(W, centred=False))
    # The first direction, of unit norm, gives 0, 2, 0, .5; their mean is .625.
    assert plain["promoted"][0].tolist()[:2] == [1, 3]
    assert plain["promoted_logit"][0].tolist() == pytest.approx([1.375, -0.125, -0.625, -0.625])
    assert plain["suppressed"][1].tolist()[:2] == [2, 0] or plain["suppressed"][1].tolist()[:2] == [0, 2]
    centred = lens(directions, Unembedding(W, centred=True))
    # Less its mean over dimensions it is (-1, 2, -1) / 3: -1/3, 4/3, 1/3, 0; their mean is 1/3.
    assert centred["promoted_logit"][0].tolist() == pytest.approx([1.0, 0.0, -1 / 3, -2 / 3], abs=1e-6)


VARIANTS = {
    "relu": (ReLU(), {}),
    "topk": (TopK(k=3), {}),
    "batchtopk": (BatchTopK(k=3.0), {"threshold": torch.tensor(0.4)}),
    "matryoshka": (Matryoshka(k=3.0), {"threshold": torch.tensor(0.4)}),
    "jumprelu": (JumpReLU(), {"log_threshold": torch.linspace(-3, 1, 20)}),
    "gated": (Gated(), {"log_gain": torch.linspace(-1, 1, 20), "magnitude_bias": torch.linspace(-0.5, 0.5, 20)}),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("kernels")
def test_entries_are_the_code(name: str) -> None:
    variant, parameters = VARIANTS[name]
    random = torch.Generator().manual_seed(4)
    W = torch.randn(20, 8, generator=random)
    sae = SAE(W, torch.randn(20, generator=random) - 1, W, torch.zeros(8), variant, 0.7, parameters)
    x = torch.randn(300, 8, generator=random)
    entries = Encoder(sae)(x)
    by_latent, by_row = torch.zeros(300, 20), torch.zeros(300, 20)
    for latent in range(20):
        where = slice(int(entries.first[latent]), int(entries.first[latent + 1]))
        rows = entries.row[where].long()
        assert rows.tolist() == sorted(set(rows.tolist()))
        by_latent[rows, latent] = entries.value[where]
    which, entry = entries.of_rows(torch.arange(300))
    by_row[which, entries.latent[entry].long()] = entries.code[entry]
    torch.testing.assert_close(by_latent, sae.encode(x))
    torch.testing.assert_close(by_row, sae.encode(x))
    assert 0 < len(entries.value) < 6000


def test_compiled_code_gathers_what_its_reference_gathers() -> None:
    random = torch.Generator().manual_seed(9)
    W = torch.randn(50, 16, generator=random)
    sae = SAE(W, torch.full((50,), -3.0), W, torch.zeros(16), ReLU())
    encode, fast, slow = Encoder(sae), Gathered(50), Gathered(50)
    for first in range(0, 120, 30):
        # Louder every time, so that histograms grow.
        x = torch.randn(30 * 40, 16, generator=random) * 3.0 ** first.bit_length()
        tokens = torch.randint(0, 700, (30, 40), generator=random)
        keep = torch.rand(30, 40, generator=random) > 0.1
        entries: Entries = encode(x[: int(keep.sum())])
        fast.add(entries, Passage(first, tokens, keep))
        slow.add_slowly(entries, Passage(first, tokens, keep))
    assert native.load("evidence") is not None
    assert int(fast.token_count.max()) == SLOTS
    for name, one in fast.state().items():
        other = slow.state()[name]
        if name in ("token_id", "token_firings", "token_mass"):  # in another order
            there = torch.arange(SLOTS) < fast.token_count[:, None]
            keys = [torch.where(there, kind.token_id, 1 << 30).argsort(1) for kind in (fast, slow)]
            one, other = (part.gather(1, key)[there] for part, key in zip((one, other), keys, strict=True))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_pass_that_was_cut_off_goes_on_to_the_same_end(tmp_path: Path, cut: int, rows: int) -> None:
    store, *_ = random_store(tmp_path / "s")
    sae, path, facts = random_sae(ReLU()), tmp_path / "partial", {"sae": "a"}
    whole = Passing(sae, store, HOOK)
    assert sum(whole.go()) == 25 * 31
    first = Passing(sae, store, HOOK)
    passed = sum(itertools.islice(first.go(), cut))
    first.save(path, facts)
    again = Passing(sae, store, HOOK)
    again.restore(path, {"sae": "another"})
    assert again.next == 0
    again.restore(path, facts)
    assert again.next * 31 == passed
    assert passed + sum(again.go()) == 25 * 31
    for name, value in whole.arrays().items():
        assert torch.equal(again.arrays()[name], value), name


def test_one_latent_is_read_without_the_others(tmp_path: Path) -> None:
    index = indexed(identity(), planted(tmp_path / "s", spread()))
    read: list[str] = []
    index.array = lambda name: (read.append(name), Index.array(index, name))[1]  # pyright: ignore[reportAttributeAccessIssue]
    index.latent(2)
    assert set(read) <= {"rows", "firings", "maximum", "occurrences"}


def test_a_store_smaller_than_the_draw_gives_every_sequence(tmp_path: Path) -> None:
    index = indexed(identity(), planted(tmp_path / "s", {}))
    assert len(index.random()) == 40 < RANDOM
    assert sorted(index.array("random_sequence").tolist()) == list(range(40))
