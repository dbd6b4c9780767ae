"""Command lines and configs that nobody means: always a result, or one clear line and exit code 2.

`make fuzz` tries 10,000 of them; the ordinary suite the first few hundred.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import KEYS, Line, complaint, lines, outcome, snapshot, unworked
from hypothesis import HealthCheck, given, settings

from hsae.cli import run

EXAMPLES = int(os.environ.get("HSAE_HOSTILE", "0"))
"""command lines to try in each of the two ways; 0: a few, the same every time"""
counted: dict[str, Counter[str]] = {"settings": Counter(), "work": Counter()}


# What keeps the work of a verb small, in the world below.
SMALL = {
    "harvest": "model=model data=text.txt hooks=blocks.1.hook_resid_pre tokens=64 context=16 device=cpu",
    "train": "steps=2 latents=16 batch-tokens=64 held-out=32 dead-window=100 device=cpu",
    "evaluate": "model=model device=cpu tokens=32",
    "ablate": "model=model device=cpu tokens=32 controls=1 latent=3",
    "steer": "model=model device=cpu tokens=4 latent=3 prompt=a",
    "compare": "tokens=32",
    "export": "to=saelens",
    "import": "folder=sae held-out=32",
    "interpret": "sample=2",
    "pull": "repository=owner/name",
    "push": "dry-run=true",
}
# Verbs of minutes, and one that never ends: they stop where their work begins.
ENDLESS = ("paper", "serve", *(verb for verb in KEYS if verb.startswith("lab ")))


def small(verb: str) -> list[str]:
    return [word for flag in SMALL.get(verb, "").split() for word in f"--{flag}".split("=")]


WORKING = lines(tame=True, start=small)


def sized(few: int, many: int) -> settings:
    """How many examples: a few, always the same; or of as many as are wanted, new ones."""
    return settings(
        max_examples=many or few,
        derandomize=not many,
        deadline=None,
        database=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a cache that holds a store and a run, an SAE to import, a model and text."""
    folder = tmp_path_factory.mktemp("world") / "cwd"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSAE_CACHE", "cache")
        patch.setenv("HF_HOME", str(folder / "hub"))
        patch.delenv("HF_TOKEN", raising=False)
        patch.delenv("OPENAI_API_KEY", raising=False)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(folder)
        fill(folder)
        yield folder


def fill(folder: Path) -> None:
    from tiny_lm import make_model, make_text

    make_model(folder / "model")
    (folder / "text.txt").write_text("\n".join(make_text(40)))
    (folder / "text.jsonl").write_text('{"text": "a b c"}\n')
    assert run(["harvest", *small("harvest"), "--tokens", "512", "--name", "shared"]) == 0
    assert run(["train", *small("train"), "--setups", "bp", "hebb-tied", "--name", "made"]) == 0
    assert run(["export", "made", "--to", "saelens", "--setup", "bp", "--out", "sae"]) == 0
    assert run(["inspect", "--run", "made"]) == 0


def judged(line: Line, world: Path, kind: str) -> None:
    """Do a line, and hold what comes of it against the promise; then everything is put back."""
    kept = world.parent / "kept"
    if not kept.exists():
        shutil.copytree(world, kept, symlinks=True)
    before = snapshot(world.parent)
    done = outcome(line)
    verb = " ".join(line.args[:1])
    counted[kind][{0: "result", 1: "result", 2: "one line"}.get(done.code, str(done.code))] += 1  # pyright: ignore
    after = snapshot(world.parent)
    changed = sorted(path for path in {**before, **after} if before.get(path) != after.get(path))
    if changed:
        for path in world.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(kept, world, symlinks=True, dirs_exist_ok=True)
    assert not (wrong := complaint(done)), f"{wrong}: {line}\n{done.err[:2000]!r}"
    assert done.code != 2 or not done.out, f"{verb} prints, and then complains: {line}"
    assert done.code in (0, 1) or not changed, f"{verb} leaves {changed[:5]} behind: {line}\n{done.err[:2000]!r}"


@sized(250, EXAMPLES)
@given(line=lines())
@pytest.mark.fault(
    "Hostile input", "Any command line and config", "hypothesis, up to where the work begins", "every verb"
)
def test_any_settings_are_taken_or_refused_in_one_line(world: Path, line: Line):
    """Any command line and config of any verb, up to where its work begins: taken, or one line and exit code 2."""
    with unworked():
        judged(line, world, "settings")


def worked(line: Line, world: Path) -> None:
    with unworked(ENDLESS):
        judged(line, world, "work")


@sized(50, EXAMPLES // 4)
@given(line=WORKING)
@pytest.mark.fault("Hostile input", "Any command line and config", "hypothesis, and the work is done", "every verb")
def test_any_line_works_or_is_refused_in_one_line_and_leaves_nothing(world: Path, line: Line):
    """Any command line and config, and what it asks for: a result, or one line, exit code 2 and nothing left behind."""
    worked(line, world)


@pytest.mark.parametrize(
    ("args", "config", "said"),
    [
        (["train", "--encoder.lr", "inf"], None, "setup.bp.encoder.lr must be a finite number, not inf"),
        (["train", "--latents", str(2**63)], None, "latents must be a whole number of at most 64 bits"),
        (["train", "my.toml"], "[train]\nepochs = inf\n", "epochs must be a finite number, not inf"),
        (["train", "my.toml"], "[train]\nlog-every = 1\nlog_every = 2\n", "log-every is set twice"),
        (["train", "my.toml"], '[train]\nstore = "\\u0000"\n', "store must be Unicode text without NUL"),
        (["train", "my.toml"], "[train.setup.bp.revive]\nrate = 1\n", "setup.bp.revive must name its kind first"),
        (["train", "my.toml"], "[train.setup]\nbp = 3\n", "setups must be a list of names, and setup.NAME tables"),
        (["train", "/dev/zero"], None, "over 16 MiB, so not a config file"),
        (["train", "x" * 5000], None, "File name too long"),
        (["inspect", "--seed", "x"], None, "--seed: INT is wanted, not 'x'"),
        (["\x1b[31m\n" * 500], None, "\\x1b[31m"),
    ],
)
def test_what_no_setting_can_be_is_said(world: Path, args: list[str], config: str | None, said: str):
    """Numbers that are not finite or too large, text that is none, keys twice, devices, names without an end."""
    done = outcome(Line(tuple(args), config.encode() if config else None))
    assert done.code == 2
    assert not complaint(done)
    assert said in done.err


@pytest.fixture(scope="module", autouse=True)
def tally() -> Iterator[None]:
    """What came of it all, where it was asked for."""
    yield
    if EXAMPLES:
        print("\n", {kind: dict(count) for kind, count in counted.items()})
