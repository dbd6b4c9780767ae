"""Interventions do what they say: every number against one that is computed here, by the definition."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sites import CONTEXT, DEAD, HOOK, LATENTS, SEQUENCES, WIDTH, by_hand, last, log_softmax, make_home, refused
from tiny_lm import make_model
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from hsae.inspect.tokens import Pieces
from hsae.intervals import estimate
from hsae.intervene import AblateConfig, SteerConfig
from hsae.intervene.controls import like_rate
from hsae.intervene.edits import Edit, directions, random_directions
from hsae.intervene.effects import effects
from hsae.intervene.reading import read
from hsae.intervene.site import Head, Site, open_site
from hsae.intervene.tally import Tally
from hsae.intervene.trials import Ablation
from hsae.lists import latent_list, named, strength_list
from hsae.lm import LM
from hsae.loading import load_lm
from hsae.splice import padding
from hsae.store import Store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("intervene"))


@pytest.fixture(scope="module")
def lm(home: Path) -> LM:
    return load_lm(str(home / "model"), device="cpu")


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HSAE_CACHE", str(home / "cache"))
    return home / "cache"


@pytest.fixture
def site(lm: LM) -> Site:
    return open_site("packed", lm=lm)


class TestLists:
    def test_latents(self):
        assert latent_list("27") == (27,)
        assert latent_list("27,30-33,31, 5") == (27, 30, 31, 32, 33, 5)
        assert latent_list("") == latent_list("  ") == ()
        assert len(latent_list("0-4095")) == 4096

    @pytest.mark.parametrize(
        "text", ["a", "1,", "-3", "5-3", "1.5", "0-4096", "0-3000,4000-7000", "1-2-3", "9" * 30, "²"]
    )
    def test_no_latents(self, text: str):
        with pytest.raises(ValueError, match="latent must be numbers and ranges such as 27,30-40"):
            AblateConfig(latent=text)

    def test_names(self):
        assert (named([5]), named(range(4))) == ("latent 5", "latents 0, 1, 2, 3")
        assert named(range(3200)) == "latents 0, 1, 2, 3 and 3,196 more"

    def test_strengths(self):
        assert strength_list("1") == (1.0,)
        assert strength_list("0,1, -2.5,1e-1,0") == (0.0, 1.0, -2.5, 0.1)
        assert math.copysign(1, strength_list("-0")[0]) == 1

    @pytest.mark.parametrize("text", ["", "a", "1,,2", "nan", "inf", "1;2"])
    def test_no_strengths(self, text: str):
        with pytest.raises(ValueError, match="strength must be numbers"):
            SteerConfig(strength=text)

    @pytest.mark.parametrize(
        ("kind", "field", "value"),
        [
            (AblateConfig, "tokens", 0),
            (AblateConfig, "controls", -1),
            (AblateConfig, "batch", 0),
            (SteerConfig, "tokens", 0),
            (SteerConfig, "temperature", -0.1),
        ],
    )
    def test_numbers_out_of_range(self, kind: type[Any], field: str, value: float):
        with pytest.raises(ValueError, match=f"{field} must be"):
            kind(**{field: value})


class TestReading:
    @pytest.mark.parametrize("run", ["packed", "documents", "opened"])
    def test_it_is_what_the_store_holds(self, home: Path, lm: LM, run: str):
        site = open_site(run, lm=lm)
        text = (home / "text.txt").read_text().split("<|endoftext|>")[0]
        found = read(site, text, top=LATENTS)
        chunk = next(site.store.chunks(HOOK, 1))
        length = min(CONTEXT, len(found.tokens))
        assert [token.token for token in found.tokens] == chunk.tokens[0, :length].tolist()
        assert [token.counts for token in found.tokens] == chunk.keep[0, :length].tolist()
        code = site.sae.encode(chunk.activations[0]) * chunk.keep[0][:, None]
        for token, row in zip(found.tokens, code[:length], strict=True):
            assert token.l0 == int((row > 0).sum()) == len(token.active)
            for active in token.active:
                assert active.activation == pytest.approx(float(row[active.latent]), abs=1e-4)
            values = [active.activation for active in token.active]
            assert values == sorted(values, reverse=True)
        live = (code[:length] > 0).any(0).nonzero().flatten().tolist()
        assert sorted(latent.latent for latent in found.latents) == live
        for latent in found.latents:
            column = code[:length, latent.latent]
            assert list(latent.positions) == column.nonzero().flatten().tolist()
            assert latent.maximum == max(latent.activations) == pytest.approx(float(column.max()), abs=1e-4)
            assert latent.activations[latent.positions.index(latent.peak)] == latent.maximum
        assert [one.maximum for one in found.latents] == sorted((one.maximum for one in found.latents), reverse=True)

    def test_positions_that_do_not_count_are_silent(self, lm: LM):
        found = read(open_site("documents", lm=lm), "sun dog cat<|endoftext|> tree")
        silent = [i for i, token in enumerate(found.tokens) if not token.counts]
        end = [token.text for token in found.tokens].index("<|endoftext|>")
        assert silent == [0, 1, end]
        assert all(found.tokens[i].l0 == 0 and not found.tokens[i].active for i in silent)
        assert not {*silent} & {i for one in found.latents for i in one.positions}

    def test_only_the_strongest(self, site: Site):
        whole, some = read(site, "the sun and the dog", top=LATENTS), read(site, "the sun and the dog", top=2)
        assert "".join(token.text for token in some.tokens) == "the sun and the dog"
        for a, b in zip(whole.tokens, some.tokens, strict=True):
            assert (a.l0, a.active[:2]) == (b.l0, b.active)
        assert some.latents == whole.latents
        assert max(token.l0 for token in some.tokens) > 2

    def test_a_long_text_is_cut_and_an_empty_one_refused(self, site: Site):
        found = read(site, "sun dog " * 100)
        assert len(found.tokens) == CONTEXT
        assert "the first 32 are read" in found.notes[0]
        assert "the text is empty" in refused(lambda: read(site, ""))

    def test_bos_is_not_doubled(self, lm: LM):
        site = open_site("opened", lm=lm)
        bos = lm.tokenizer.bos_token_id
        assert site.encode_text("sun")[0] == bos
        assert site.encode_text("sun") == site.encode_text("<|endoftext|>sun")
        assert open_site("documents", lm=lm).encode_text("sun")[0] != bos


class TestEdits:
    def test_all_latents_together_take_the_whole_code_out(self, site: Site):
        x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1)) / site.sae.scale
        code = site.sae.encode(x)
        everything = tuple(range(LATENTS))
        edit = Edit(everything, directions(site.sae, everything))
        expected = x - code @ site.sae.W_dec / site.sae.scale
        torch.testing.assert_close(x + edit.change(code), expected)
        # The SAE's error is all that is left, and its bias.
        error = x - site.sae(x)
        torch.testing.assert_close(expected, error + site.sae.b_dec / site.sae.scale)

    def test_a_new_activation_where_it_fires(self, site: Site):
        code = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        rows = site.sae.W_dec[[4, 9]] / site.sae.scale
        change = Edit((4, 9), directions(site.sae, (4, 9)), set_to=5.0).change(code)
        torch.testing.assert_close(change, torch.stack([3 * rows[1], 2 * rows[0]]))

    def test_random_directions_are_as_long(self, site: Site):
        own = directions(site.sae, range(LATENTS))
        drawn = random_directions(own, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn.norm(dim=1), own.norm(dim=1))
        cosines = torch.cosine_similarity(drawn, own).abs()
        assert cosines.mean() < 0.5
        many = random_directions(torch.ones(4000, 3), torch.Generator().manual_seed(0))
        assert many.mean(0).abs().max() < 0.1
        torch.testing.assert_close((many**2).mean(0), torch.ones(3), atol=0.05, rtol=0)


class TestEffects:
    @pytest.mark.parametrize("setup", ["bp", "tied", "top"])
    @pytest.mark.parametrize("set_to", [0.0, 2.5])
    def test_every_number_by_its_definition(self, lm: LM, setup: str, set_to: float):
        site = open_site("packed", setup, lm=lm)
        found = effects(site, [20, 7, 23], set_to=set_to, tokens=3 * CONTEXT, controls=0)
        assert [one.latents for one in found.ablations] == [(20,), (7,), (23,), (20, 7, 23)]
        assert (found.sequences, found.positions, found.predictions) == (3, 3 * CONTEXT, 3 * (CONTEXT - 1))
        ids, keep = last(site, 3)
        clean = log_softmax(lm.logits(ids))[:, :-1].gather(2, ids[:, 1:, None]).mean()
        assert found.clean == pytest.approx(-float(clean), rel=1e-6)
        for one in found.ablations:
            hand = by_hand(site, ids, keep, one.latents, set_to)
            there = hand.fires[:, :-1]
            assert one.fires == int(hand.fires.sum()) > 0
            assert one.activation == pytest.approx(hand.activation, rel=1e-4)
            assert one.overall.loss == pytest.approx(-float(hand.gain.mean()), abs=1e-6)
            assert one.overall.kl == pytest.approx(float(hand.kl.mean()), abs=1e-6)
            assert one.firing.predictions == int(there.sum())
            assert one.firing.loss == pytest.approx(-float(hand.gain[there].mean()), abs=1e-6)
            assert one.firing.kl == pytest.approx(float(hand.kl[there].mean()), abs=1e-6)
            assert max(one.overall.kl or 0, one.firing.kl or 0) > 1e-4
            # Sequences of one length: the interval is that of their means.
            means = estimate((-hand.gain).mean(1).tolist())
            assert means is not None
            assert one.overall.half == pytest.approx(means.half, rel=1e-3)
            self.check_named(site, one, ids, hand)

    def check_named(self, site: Site, one: Ablation, ids: Tensor, hand: SimpleNamespace) -> None:
        worst = hand.gain.flatten().argsort()[: len(one.hurt)].tolist()
        first = SEQUENCES - len(ids)
        for hurt, flat in zip(one.hurt, worst, strict=True):
            row, t = divmod(flat, CONTEXT - 1)
            assert (hurt.sequence, hurt.position) == (first + row, t)
            target = ids[row, t + 1]
            assert hurt.before == pytest.approx(float(hand.before[row, t, target]), abs=1e-4)
            assert hurt.after == pytest.approx(float(hand.after[row, t, target]), abs=1e-4)
            assert hurt.fires == bool(hand.fires[row, t])
            assert "".join((*hurt.context, hurt.target)) == "".join(
                site.pieces(ids[row, max(0, t - 15) : t + 2].tolist())
            )
        there = hand.fires[:, :-1]
        change = (hand.after[there].exp() - hand.before[there].exp()).mean(0)
        for shifts, order in ((one.rises, (-change).argsort()), (one.falls, change.argsort())):
            assert [change[s.token] for s in shifts] == pytest.approx(change[order[:8]].tolist(), abs=1e-6)
            for shift in shifts:
                assert shift.after - shift.before == pytest.approx(float(change[shift.token]), abs=1e-6)
                assert shift.before == pytest.approx(float(hand.before[there].exp().mean(0)[shift.token]), abs=1e-6)
                assert shift.text == site.pieces.one(shift.token)

    def test_a_latent_that_never_fires_changes_nothing_exactly(self, site: Site):
        found = effects(site, [DEAD], tokens=2 * CONTEXT, controls=2)
        (one,) = found.ablations
        assert (one.fires, one.activation, one.firing.predictions, one.firing.loss) == (0, None, 0, None)
        assert (one.overall.loss, one.overall.half, one.overall.kl) == (0, 0, 0)
        assert one.hurt == one.rises == one.falls == ()
        assert one.controls == ()
        assert f"silent in these sequences, so that nothing changes: latent {DEAD}" in found.notes[-1]

    def test_beside_a_latent_that_fires_a_dead_one_does_not_matter(self, site: Site):
        alone, dead, together = effects(site, [20, DEAD], tokens=2 * CONTEXT, controls=2).ablations
        assert dead.controls == ()
        assert (together.fires, together.overall, together.firing) == (alone.fires, alone.overall, alone.firing)
        assert together.controls[1] == alone.controls[1]
        assert alone.controls[1].kind == "latents"

    def test_the_interval_where_it_fires_is_the_ratios(self, site: Site):
        (one,) = effects(site, [14], tokens=6 * CONTEXT, controls=0).ablations
        ids, keep = last(site, 6)
        hand = by_hand(site, ids, keep, (14,))
        there = hand.fires[:, :-1]
        sums = [(float(-g[f].sum()), int(f.sum())) for g, f in zip(hand.gain, there, strict=True) if f.any()]
        total, count = sum(n for _, n in sums), len(sums)
        assert len({n for _, n in sums}) > 1
        ratio = sum(s for s, _ in sums) / total
        variance = count / (count - 1) * sum((s - ratio * n) ** 2 for s, n in sums) / total**2
        student = {2: 12.7062, 3: 4.30265, 4: 3.18245, 5: 2.77645, 6: 2.57058}[count]
        assert one.firing.half == pytest.approx(student * math.sqrt(variance), rel=1e-3)

    @pytest.mark.parametrize("batch", [2, 5])
    def test_the_batch_changes_nothing(self, site: Site, batch: int):
        one, more = (effects(site, [7, 20], tokens=5 * CONTEXT, batch=b, controls=1) for b in (1, batch))
        for a, b in zip(one.ablations, more.ablations, strict=True):
            assert (a.fires, a.firing.predictions) == (b.fires, b.firing.predictions)
            for x, y in zip(a.controls, b.controls, strict=True):
                assert x.overall is not None
                assert y.overall is not None
                assert x.overall.mean == pytest.approx(y.overall.mean, abs=1e-6)
            assert (a.overall.loss, a.overall.half) == pytest.approx((b.overall.loss, b.overall.half), abs=1e-6)
            assert [(h.sequence, h.position) for h in a.hurt] == [(h.sequence, h.position) for h in b.hurt]

    def test_padding_and_positions_that_do_not_count(self, lm: LM):
        site = open_site("documents", lm=lm)
        found = effects(site, [7], tokens=SEQUENCES * CONTEXT, controls=0)
        record, manifest = site.subject.hook_record, site.store.manifest
        assert found.positions == record.kept < manifest.tokens - record.excluded["padding"]
        assert found.predictions == manifest.tokens - record.excluded["padding"] - manifest.sequences
        ids, keep = last(site, SEQUENCES)
        hand = by_hand(site, ids, keep, (7,))
        assert found.ablations[0].fires == int(hand.fires.sum())
        (chunk,) = site.store.chunks(HOOK, SEQUENCES)
        there = hand.fires[:, :-1] & ~padding(chunk, manifest.tokenizer["pad"])[:, 1:]
        assert there.sum() < hand.fires[:, :-1].sum()
        assert found.ablations[0].firing.loss == pytest.approx(-float(hand.gain[there].mean()), abs=1e-6)
        code = site.sae.encode(site.lm.tap(ids, (HOOK,))[HOOK])[..., 7]
        assert ((code > 0) & ~keep).any()

    def test_random_directions_are_measured_as_the_latent_is(self, site: Site):
        (one,) = effects(site, [20], tokens=2 * CONTEXT, controls=3, control_seed=4).ablations
        control = one.controls[0]
        assert (control.kind, control.latents) == ("directions", ())
        ids, _ = last(site, 2)
        x = site.lm.tap(ids, (HOOK,))[HOOK]
        code = site.sae.encode(x)[..., 20:21]
        generator, losses = torch.Generator().manual_seed(4), []
        for _ in range(3):
            direction = random_directions(directions(site.sae, [20]), generator)
            logits = site.lm.logits(ids, HOOK, lambda there, d=direction: there - code * d[0])
            gain = (log_softmax(logits) - log_softmax(site.lm.logits(ids)))[:, :-1].gather(2, ids[:, 1:, None])
            losses.append(-float(gain.mean()))
        assert control.overall is not None
        assert (control.overall.count, control.overall.mean) == (3, pytest.approx(np.mean(losses), abs=1e-6))
        assert control.overall.std == pytest.approx(np.std(losses, ddof=1), rel=1e-2)
        other = effects(site, [20], tokens=2 * CONTEXT, controls=3, control_seed=5).ablations[0].controls[0]
        assert other.overall != control.overall

    def test_other_latents_are_measured_as_if_they_were_asked_for(self, site: Site):
        found = effects(site, [20, 7], tokens=2 * CONTEXT, controls=2)
        for one in found.ablations:
            control = one.controls[1]
            assert (control.kind, len(control.latents)) == ("latents", 2)
            losses = []
            for some in control.latents:
                assert len(some) == len(one.latents)
                assert not {20, 7, DEAD} & {*some}
                losses.append(effects(site, some, tokens=2 * CONTEXT, controls=0).ablations[-1].overall.loss)
            assert control.overall is not None
            assert control.overall.mean == pytest.approx(np.mean(losses), abs=1e-6)
        alone, together = (one.controls[1].latents for one in (found.ablations[0], found.ablations[-1]))
        assert tuple(some[0] for some in together) == tuple(some[0] for some in alone)

    def test_the_strongest_sequences(self, site: Site):
        index = site.index()
        found = effects(site, [20, 7], which="strongest", tokens=3 * CONTEXT, controls=0, index=index)
        tops = [[context.sequence for context in index.latent(i).top] for i in (20, 7)]
        expected = list(dict.fromkeys(n for pair in zip(*tops, strict=False) for n in pair))[:3]
        assert {hurt.sequence for one in found.ablations for hurt in one.hurt} <= {*expected}
        assert (found.sequences, found.which) == (3, "strongest")
        ids = torch.cat([next(site.store.chunks(HOOK, 1, n)).tokens for n in sorted(expected)]).long()
        hand = by_hand(site, ids, torch.ones_like(ids, dtype=torch.bool), (20,))
        assert found.ablations[0].overall.loss == pytest.approx(-float(hand.gain.mean()), abs=1e-6)
        assert "no sample of the store" in found.notes[-1]
        line = refused(lambda: effects(site, [DEAD], which="strongest"))
        assert f"store packed: latent {DEAD} never fires there" in line

    def test_held_out_sequences_and_what_was_trained_on(self, site: Site):
        assert effects(site, [7], tokens=6 * CONTEXT, controls=0).notes == ()
        (note,) = effects(site, [7], tokens=8 * CONTEXT, controls=0).notes
        assert note.startswith("2 of the 8 sequences were trained on")
        assert effects(site, [7], tokens=10**9, controls=0).sequences == SEQUENCES

    def test_refusals(self, site: Site, monkeypatch: pytest.MonkeyPatch):
        assert f"latent {LATENTS} is not in 0…{LATENTS - 1} of setup bp" in refused(lambda: effects(site, [LATENTS]))
        assert "no latent is named" in refused(lambda: effects(site, []))
        clean = LM.logits

        def deaf(self: LM, ids: Tensor, hook: str = "", edit: Any = None) -> Tensor:
            return clean(self, ids, hook, edit and (lambda x: (edit(x), x.clone())[1]))

        monkeypatch.setattr(LM, "logits", deaf)
        assert "changing the activation changes nothing" in refused(
            lambda: effects(site, [20], tokens=CONTEXT, controls=0)
        )


class TestControls:
    def test_others_of_like_rate(self):
        found = like_rate(np.array([100, 49, 51, 199, 201, 0, 100]), [0], 10, seed=0)
        assert sorted(found[0]) == [1, 2, 3, 4, 6]  # too few are within a factor of 2: all, by nearness
        for seed in range(20):
            (found,) = like_rate(np.array([100, 49, 51, 199, 201, 0, 100]), [0], 3, seed).values()
            assert sorted(found) == [2, 3, 6]
        draws = {tuple(sorted(like_rate(np.array([100] * 9), [0], 2, seed)[0])) for seed in range(500)}
        assert len(draws) == 28  # every pair of the other eight

    def test_none_twice_and_none_of_those_asked_for(self):
        for seed in range(10):
            found = like_rate(np.array([10] * 8), [0, 1], 3, seed)
            assert sorted(found[0] + found[1]) == [2, 3, 4, 5, 6, 7]

    def test_what_is_not_there(self):
        assert like_rate(np.array([0, 5, 5]), [0], 2, 0) == {}
        assert like_rate(np.array([5, 0, 0]), [0], 2, 0) == {0: []}


class TestTally:
    def test_a_loss_that_falls_hurts_nothing(self):
        tally, log_p = Tally(whole=True), torch.tensor([[0.5, 0.5]]).log()
        every = torch.tensor([True])
        tally.add(3, torch.tensor([0, 1]), log_p, torch.tensor([[0.25, 0.75]]).log(), every, every)
        assert tally.hurt(Pieces(None)) == ()
        assert tally.overall.loss == pytest.approx(-math.log(1.5))
        assert (tally.overall.predictions, tally.overall.half) == (1, None)

    def test_predictions_that_do_not_count_are_not_named(self):
        tally, log_p = Tally(whole=True), torch.full((2, 2), 0.5).log()
        log_q = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).log()
        wanted, fires = torch.tensor([True, False]), torch.tensor([True, True])
        tally.add(0, torch.tensor([0, 1, 1]), log_p, log_q, wanted, fires)
        assert [one.position for one in tally.hurt(Pieces(None))] == [0]
        assert (tally.overall.predictions, tally.firing.predictions) == (1, 1)
        assert tally.firing.loss == pytest.approx(math.log(0.5 / 0.4))


class TestSite:
    def test_another_model_is_refused_and_one_that_is_loaded_is_taken(self, home: Path, lm: LM, site: Site):
        assert site.lm is lm
        assert site.head == Head("packed", "bp", 0, LATENTS, "packed", HOOK, lm.name)
        other = make_model(home / "other", intermediate_size=48)
        assert "is not the one of store packed" in refused(lambda: open_site("packed", model=str(other), device="cpu"))
        assert "nothing there" in refused(lambda: open_site("packed", model=str(home / "gone")))

    def test_the_usual_norm_is_the_stores(self, site: Site):
        x = torch.cat([chunk.activations for chunk in site.store.chunks(HOOK, 8)])
        assert site.usual_norm == pytest.approx(float(x.pow(2).sum(-1).mean().sqrt()), rel=1e-4)

    @pytest.mark.parametrize(
        ("harvest", "opened"),
        [
            ({"prepend_bos": True, "separator": "eos", "pack": "packed"}, True),
            ({"prepend_bos": True, "separator": "eos", "pack": "documents"}, True),
            ({"prepend_bos": False, "separator": "bos", "pack": "packed"}, True),
            ({"prepend_bos": False, "separator": "bos", "pack": "documents"}, False),
            ({"prepend_bos": False, "separator": "auto", "pack": "packed"}, False),
            ({}, False),
        ],
    )
    def test_a_text_is_opened_as_a_row_of_the_store(self, site: Site, harvest: dict[str, Any], opened: bool):
        site = of_store(site, harvest)
        # A tokeniser that adds tokens by itself is told not to: so it was when the store was made.
        tokenizer = copy.deepcopy(site.lm.tokenizer)
        adds = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        tokenizer.backend_tokenizer.post_processor = adds
        assert tokenizer("sun")["input_ids"][0] == 0
        site = dataclasses.replace(site, lm=dataclasses.replace(site.lm, tokenizer=tokenizer))
        assert (site.encode_text("sun")[0] == site.lm.tokenizer.bos_token_id) == opened

    def test_positions_count_as_the_store_says(self, site: Site):
        tokens = torch.tensor([[9, 8, site.lm.tokenizer.eos_token_id, 7, 6]])
        x = torch.ones(1, 5, WIDTH)
        x[0, 3] = 5
        for harvest, counted in (
            ({}, [True] * 5),
            ({"exclude_special": True}, [True, True, False, True, True]),
            ({"exclude_first": 2, "context": 8}, [False, False, True, True, True]),
            ({"exclude_norm": 4.0, "model": "any"}, [True, True, True, False, True]),
        ):
            assert of_store(site, harvest).counts(tokens, x)[0].tolist() == counted

    def test_another_store_was_not_trained_on(self, lm: LM):
        site = open_site("packed", on="opened", lm=lm)
        assert site.head.store == "opened"
        assert effects(site, [7], tokens=10**9, controls=0).notes == site.notes


def of_store(site: Site, harvest: dict[str, Any]) -> Site:
    """The same with another harvest's settings in the store's manifest."""
    store = Store(site.store.folder)
    store.manifest = dataclasses.replace(store.manifest, harvest=harvest)
    return dataclasses.replace(site, store=store)
