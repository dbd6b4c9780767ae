"""What is written under a push, against the model edited by hand; and both verbs as a user sees them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from sites import CONTEXT, DEAD, HOOK, LATENTS, PROMPT, WIDTH, by_hand, log_softmax, make_home, refused
from torch import Tensor

from hsae import cli
from hsae.flags import override
from hsae.inspect.ink import Ink
from hsae.intervene import AblateConfig, SteerConfig, ablate, steer
from hsae.intervene.drawing import draw_effects, draw_steered
from hsae.intervene.effects import Effects, effects
from hsae.intervene.site import Site, open_site
from hsae.intervene.steering import Push, Steered, steered
from hsae.intervene.writing import write
from hsae.lm import LM
from hsae.loading import load_lm


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


class Linear(LM):
    """The token's embedding is the activation, and the logits are linear in it."""

    def __init__(self, like: LM) -> None:
        super().__init__(like.bridge, like.tokenizer, "linear", "cpu")
        generator = torch.Generator().manual_seed(5)
        self.__dict__["W_E"] = torch.randn(300, WIDTH, generator=generator)
        self.__dict__["W_U"] = torch.randn(WIDTH, 300, generator=generator)

    def tap(self, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        x: Tensor = self.__dict__["W_E"][tokens]
        return dict.fromkeys(hooks, x)

    def logits(self, tokens: Tensor, hook: str = "", edit: Any = None) -> Tensor:
        x = self.tap(tokens, (HOOK,))[HOOK]
        return (edit(x) if edit else x) @ self.__dict__["W_U"]


@pytest.fixture
def linear(site: Site, lm: LM) -> Site:
    return dataclasses.replace(site, lm=Linear(lm))


class TestSteering:
    @pytest.mark.parametrize("setup", ["bp", "tied", "top"])
    @pytest.mark.parametrize("start", [0, 3])
    def test_logits_change_by_the_direction_through_the_unembedding(self, lm: LM, setup: str, start: int):
        site = dataclasses.replace(open_site("packed", setup, lm=lm), lm=Linear(lm))
        tokens = torch.tensor([site.encode_text(PROMPT)] * 3)
        push = Push(site, (9, 4), torch.tensor([[2.0, 0.0], [0.5, -1.0]]), clamp=False)
        logits = site.lm.logits(tokens, HOOK, lambda x: push(tokens, x, start)[0])
        change = logits - site.lm.logits(tokens)
        W_U = site.lm.__dict__["W_U"]
        rows = site.sae.W_dec / site.sae.scale
        assert torch.equal(change[0], torch.zeros_like(change[0]))
        assert torch.equal(change[:, :start], torch.zeros_like(change[:, :start]))
        for row, direction in ((1, 2 * rows[9]), (2, 0.5 * rows[9] - rows[4])):
            expected = (direction @ W_U).expand_as(change[row, start:])
            torch.testing.assert_close(change[row, start:], expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("setup", ["bp", "top"])
    def test_a_clamped_latent_has_that_activation(self, lm: LM, setup: str):
        site = open_site("packed", setup, lm=lm)
        x = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(1)) / site.sae.scale
        tokens = torch.zeros(2, 6, dtype=torch.long)
        push = Push(site, (20,), torch.tensor([[3.0]]), clamp=True)
        new, where = push(tokens, x, 1)
        assert where.tolist() == [[False] * 6, [False] + [True] * 5]
        code = site.sae.encode(x)
        assert (code[1, 1:, 20] > 0).any()
        parts = (3.0 - code[1, 1:, 20:21]) * site.sae.W_dec[20] / site.sae.scale
        torch.testing.assert_close(new[1, 1:], x[1, 1:] + parts)
        assert torch.equal(new[0], x[0])
        assert torch.equal(new[1, 0], x[1, 0])

    def test_what_is_written_is_what_the_pushed_model_finds_likeliest(self, linear: Site):
        found = steered(linear, [9], PROMPT, (0.0, 40.0, -40.0), unit="activation", tokens=5)
        W_E, W_U = (linear.lm.__dict__[name] for name in ("W_E", "W_U"))
        assert [one.strength for one in found.steered] == [0, 40, -40]
        for one in (found.unchanged, *found.steered):
            token, expected = found.prompt[-1], []
            for _ in range(5):
                x = W_E[token] + (one.strength or 0) * linear.sae.W_dec[9] / linear.sae.scale
                token = int((x @ W_U).argmax())
                if token == linear.lm.tokenizer.eos_token_id:
                    break
                expected.append(token)
            assert list(one.tokens) == expected
            assert "".join((*found.prompt_text, *one.text)) == "".join(linear.pieces([*found.prompt, *one.tokens]))
        assert len({one.tokens for one in found.steered}) == 3

    def test_a_strength_of_0_is_the_unchanged_model(self, site: Site):
        for temperature in (0.0, 1.0):
            found = steered(site, [20], PROMPT, (0.0, 500.0), temperature=temperature, tokens=12)
            assert found.steered[0] == dataclasses.replace(found.unchanged, strength=0.0)
            assert (found.unchanged.kl, found.unchanged.norm) == (None, None)
            assert found.steered[1].tokens != found.unchanged.tokens
            alone = steered(site, [20], PROMPT, (500.0,), temperature=temperature, tokens=12)
            assert alone.steered[0].tokens == found.steered[1].tokens

    def test_the_whole_model_by_hand(self, site: Site):
        """Greedy, with the direction from the prompt's last position on, and on all of it."""
        unit = float(site.index().maximum[20])
        for prompt_too in (False, True):
            found = steered(site, [20], PROMPT, (60.0,), prompt_too=prompt_too, tokens=6)
            assert found.latents[0].unit == unit
            ids = list(found.prompt)
            for token in found.steered[0].tokens:

                def edit(x: Tensor, start: int = 0 if prompt_too else len(found.prompt) - 1) -> Tensor:
                    new = x.clone()
                    new[:, start:] += 60 * unit * site.sae.W_dec[20] / site.sae.scale
                    return new

                assert int(site.lm.logits(torch.tensor([ids]), HOOK, edit)[0, -1].argmax()) == token
                ids.append(token)
            assert len(found.steered[0].tokens) == 6

    def test_kl_and_norm_on_the_prompt(self, site: Site):
        found = steered(site, [20, 7], PROMPT, (0.5, 30.0), unit="mean", tokens=1)
        index = site.index()
        ids = torch.tensor([found.prompt])
        x, clean = site.lm.tap(ids, (HOOK,))[HOOK], log_softmax(site.lm.logits(ids))
        push = sum(float(index.mean[i]) * site.sae.W_dec[i] / site.sae.scale for i in (20, 7))
        for one in found.steered:
            assert one.strength is not None
            new = x + one.strength * push
            changed = log_softmax(site.lm.logits(ids, HOOK, lambda _, new=new: new))
            assert one.kl == pytest.approx(float((clean.exp() * (clean - changed)).sum(-1).mean()), abs=3e-7)
            moments = site.subject.hook_record.second_moment
            assert one.norm == pytest.approx(float(new.norm(dim=-1).mean()) / math.sqrt(sum(moments)), rel=1e-4)
        assert [note[:11] for note in found.notes] == ["strength 30"]
        assert "times as long as usual" in found.notes[0]

    def test_positions_that_do_not_count_are_left_alone(self, lm: LM):
        site = open_site("documents", lm=lm)
        tokens = torch.tensor([site.encode_text("sun dog<|endoftext|> the cat")] * 2)
        x = torch.ones(*tokens.shape, WIDTH)
        _, where = Push(site, (20,), torch.tensor([[1.0]]), clamp=False)(tokens, x, 0)
        silent = (~where[1]).nonzero().flatten().tolist()
        assert silent == [0, 1, tokens[0].tolist().index(lm.tokenizer.eos_token_id)]
        found = steered(site, [20], "a", (3.0,), tokens=1)
        assert (found.steered[0].kl, found.steered[0].norm) == (0, None)

    def test_a_clamp_at_0_is_the_ablation(self, site: Site):
        found = steered(site, [23], PROMPT, (0.0,), clamp=True, prompt_too=True, tokens=1)
        ids = torch.tensor([found.prompt])
        hand = by_hand(site, ids, torch.ones_like(ids, dtype=torch.bool), (23,))
        clean, x = log_softmax(site.lm.logits(ids)), site.lm.tap(ids, (HOOK,))[HOOK]
        assert found.steered[0].kl is not None
        # By hand the last position's prediction is not among them.
        code = site.sae.encode(x)[..., 23:24]
        changed = log_softmax(site.lm.logits(ids, HOOK, lambda _: x - code * site.sae.W_dec[23] / site.sae.scale))
        kl = (clean.exp() * (clean - changed)).sum(-1)
        assert found.steered[0].kl == pytest.approx(float(kl.mean()), abs=3e-7)
        torch.testing.assert_close(kl[:, :-1], hand.kl, atol=1e-6, rtol=1e-4)

    def test_sampling_follows_the_seed_and_the_models_probabilities(self, linear: Site):
        ids = linear.encode_text(PROMPT)

        def draw(seed: int, temperature: float) -> int:
            (one,) = write(linear.lm, HOOK, lambda tokens, x: x, ids, 1, 1, temperature, seed)
            return one.tokens[0] if one.tokens else linear.lm.tokenizer.eos_token_id

        counts = torch.bincount(torch.tensor([draw(seed, 2.0) for seed in range(3000)]), minlength=300) / 3000
        p = (linear.lm.logits(torch.tensor([ids]))[0, -1].double() / 2.0).softmax(-1)
        top = p.topk(5).indices
        assert (counts[top] - p[top]).abs().max() < 0.04
        assert p[top[0]] > 0.1
        a, b, c = (
            steered(linear, [9], PROMPT, (), temperature=2.0, sampling_seed=seed).unchanged for seed in (1, 1, 2)
        )
        assert a == b != c

    def test_where_it_ends(self, linear: Site, lm: LM, site: Site):
        W_E, W_U = (linear.lm.__dict__[name] for name in ("W_E", "W_U"))
        end, ids = lm.tokenizer.eos_token_id, linear.encode_text(PROMPT)
        W_U[:2], W_U[0, 7], W_U[1, end] = 0, 1, 1
        W_E[ids[-1]], W_E[7] = torch.eye(WIDTH)[0], torch.eye(WIDTH)[1]  # 7 is likeliest, and then the end
        found = steered(linear, [9], PROMPT, (), tokens=9).unchanged
        assert (found.tokens[-1], found.end) == (7, "text")
        assert end not in found.tokens
        long = "the sun " * 28
        room = site.lm.context_limit - len(site.encode_text(long))
        assert 0 < room < 20
        found = steered(site, [20], long, (1.0,), tokens=room + 5)
        assert (len(found.unchanged.tokens), found.unchanged.end) == (room, "context")
        assert f"cut at {site.lm.context_limit} tokens" in found.notes[-1]
        found = steered(site, [20], long, (1.0,), tokens=room)
        assert (len(found.unchanged.tokens), found.unchanged.end, found.notes) == (room, "tokens", ())

    def test_a_watcher_sees_every_token_and_can_stop(self, site: Site):
        seen: list[Tensor] = []
        found = steered(site, [20], PROMPT, (1.0,), tokens=4, watch=seen.append)
        assert [tuple(ids.shape) for ids in seen] == [(2, len(found.prompt) + n) for n in (1, 2, 3, 4)]
        assert tuple(seen[-1][0, -4:].tolist()) == found.unchanged.tokens

        def stop(_: Tensor) -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            steered(site, [20], PROMPT, (1.0,), watch=stop)
        assert all(not point.fwd_hooks for point in site.lm.bridge.hook_dict.values())

    def test_refusals(self, site: Site):
        assert "no unit" in refused(lambda: steered(site, [DEAD], PROMPT))
        assert steered(site, [DEAD], PROMPT, unit="activation", tokens=1).latents[0].unit == 1
        assert f"latent {LATENTS} is not in" in refused(lambda: steered(site, [LATENTS], PROMPT))
        assert "the text is empty" in refused(lambda: steered(site, [20], ""))
        limit = site.lm.context_limit
        assert f"takes {limit} at most" in refused(lambda: steered(site, [20], "sun " * limit))


def printed(parts: Any) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80)
    for part in parts:
        console.print(part)
    return file.getvalue()


HOSTILE = "[bold]\x1b[31m\u202e"


class TestFaces:
    @pytest.fixture
    def ablated(self, site: Site) -> Effects:
        return effects(site, [20, 7], tokens=3 * CONTEXT)

    @pytest.fixture
    def written(self, site: Site) -> Steered:
        return steered(site, [20], PROMPT, (0.0, 3.0, -500.0))

    def test_an_ablation_fits_80_columns(self, ablated: Effects):
        text = printed(draw_effects(ablated, Ink(colour=False), 80))
        lines = text.splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0] == "ablate latents 20, 7 · bp, seed 0 · run packed"
        assert f"3 held-out sequences, {3 * CONTEXT} positions, {3 * CONTEXT - 3} predictions" in text
        rows = [line.split() for line in lines]
        for one, name in zip(ablated.ablations, ("latent 20", "latent 7", "all together"), strict=True):
            (row,) = (row for row in rows if " ".join(row[:2]) == name)
            assert row[2] == str(one.fires)
            cells = [one.overall.loss, one.overall.half, one.firing.loss, one.firing.half, one.firing.kl]
            assert [float(cell) for cell in row[3:]] == pytest.approx(cells, rel=0.05)
        assert sum(row[:2] == ["random", "direction"] for row in rows) == 3
        assert sum(row[:2] == ["other,", "like"] for row in rows) == 3
        worst = ablated.ablations[-1].hurt[0]
        line = next(line for line in lines if " → " in line)
        assert line.endswith(f"«{worst.target}»")
        assert f"{worst.before:6.2f} → {worst.after:6.2f}" in line
        assert (line[0] == "*") == worst.fires

    def test_a_continuation_fits_80_columns(self, written: Steered):
        text = printed(draw_steered(written, Ink(colour=False), 80))
        assert max(map(len, text.splitlines())) <= 80
        assert text.splitlines()[0] == "steer by latent 20 · bp, seed 0 · run packed"
        assert "its highest on the store" in text
        assert "note: strength -500" in text
        words = {line.split()[0] for line in text.splitlines() if line.strip()}
        assert {"none", "0", "3", "-500"} <= words

    def test_what_is_shown_is_never_read_as_markup(self, ablated: Effects, written: Steered):
        head = dataclasses.replace(ablated.head, run=HOSTILE)
        one = ablated.ablations[-1]
        hurt = dataclasses.replace(one.hurt[0], context=(HOSTILE,) * 40, target=HOSTILE)
        shift = dataclasses.replace(one.rises[0], text=HOSTILE * 50)
        one = dataclasses.replace(one, hurt=(hurt,), rises=(shift,), falls=())
        effects_text = printed(
            draw_effects(dataclasses.replace(ablated, head=head, ablations=(one,), notes=(HOSTILE,)), Ink(False), 80)
        )
        bad = dataclasses.replace(written.unchanged, text=(HOSTILE,) * 30, end="text", kl=math.nan)
        steered_text = printed(
            draw_steered(dataclasses.replace(written, head=head, unchanged=bad, prompt_text=(HOSTILE,)), Ink(False), 80)
        )
        for text in (effects_text, steered_text):
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert "[bold]" in text
            assert max(map(len, text.splitlines())) <= 80
        assert "(end of the text)" in " ".join(steered_text.split())

    def test_json_is_one_document(self, capsys: pytest.CaptureFixture[str]):
        flags = ["--run", "packed", "--device", "cpu", "--json"]
        assert cli.run(["ablate", "--latent", "20,7", "--tokens", str(2 * CONTEXT), "--set-to", "0.5", *flags]) == 0
        shown = json.loads(capsys.readouterr().out)
        found = effects(open_site("packed", device="cpu"), [20, 7], set_to=0.5, tokens=2 * CONTEXT)
        assert shown == json.loads(json.dumps(dataclasses.asdict(found)))
        more = ["--prompt", PROMPT, "--strength", "-1,2", "--tokens", "3", "--unit", "mean", "--clamp", "--prompt-too"]
        assert cli.run(["steer", "--latent", "20", *more, "--temperature", "1", "--sampling-seed", "4", *flags]) == 0
        out, err = capsys.readouterr()
        options: dict[str, Any] = {"unit": "mean", "clamp": True, "prompt_too": True, "tokens": 3}
        made = steered(
            open_site("packed", device="cpu"), [20], PROMPT, (-1.0, 2.0), temperature=1.0, sampling_seed=4, **options
        )
        assert json.loads(out) == json.loads(json.dumps(dataclasses.asdict(made)))
        assert err == ""

    def test_every_setting_of_an_ablation_reaches_it(self, capsys: pytest.CaptureFixture[str]):
        flags = ["--which", "strongest", "--controls", "1", "--control-seed", "3", "--batch", "2", "--setup", "top"]
        flags += ["--tokens", str(4 * CONTEXT), "--seed", "0", "--on", "packed", "--hook", HOOK]
        ablate(_config(AblateConfig, ["--latent", "20", "--run", "packed", "--device", "cpu", "--json", *flags]))
        shown = json.loads(capsys.readouterr().out)
        site = open_site("packed", "top", device="cpu")
        found = effects(site, [20], which="strongest", controls=1, control_seed=3, tokens=4 * CONTEXT, batch=2)
        assert shown == json.loads(json.dumps(dataclasses.asdict(found)))

    def test_a_prompt_from_the_standard_input(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        for raw, words in ((b"the sun\n", "the sun"), (b"the sun\n\n", "the sun\n")):
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
            steer(SteerConfig(run="packed", latent="20", prompt="-", tokens=1, device="cpu", json=True))
            assert "".join(json.loads(capsys.readouterr().out)["prompt_text"]) == words
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff")))
        assert "not UTF-8" in refused(lambda: steer(SteerConfig(latent="20", prompt="-")))

    def test_what_is_missing_is_said_before_anything_is_loaded(self):
        assert "--latent 27 names a latent" in refused(lambda: ablate(AblateConfig()))
        assert "--latent 27 names a latent" in refused(lambda: steer(SteerConfig(prompt="a")))
        assert "--prompt" in refused(lambda: steer(SteerConfig(latent="1")))

    def test_ctrl_c_promises_nothing(self, monkeypatch: pytest.MonkeyPatch):
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("hsae.intervene.site.open_site", stop)
        with pytest.raises(KeyboardInterrupt, match=r"^stopped$"):
            ablate(AblateConfig(latent="1"))

    def test_help_needs_no_pytorch(self):
        code = "import sys, hsae.intervene; print({'torch', 'numpy', 'rich', 'transformers'} & {*sys.modules})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "set()\n"


def _config(kind: type[Any], flags: list[str]) -> Any:
    return override(kind, kind(), flags, "ablate")
