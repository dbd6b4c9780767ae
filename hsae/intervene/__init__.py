"""Interventions: what a language model does when a latent is taken out (`hsae ablate`) or pushed (`hsae steer`).

The library under the two verbs, for a notebook or a server that keeps its models:

    from hsae.intervene.site import open_site         # a run's SAE, its store, and the language model, checked
    from hsae.intervene.reading import read           # a text: which latents fire on which token
    from hsae.intervene.effects import effects        # what ablating latents costs on the store's sequences
    from hsae.intervene.steering import steered       # continuations of a prompt, with and without a push

    site = open_site(run="my-run", setup="bp")        # open_site(..., lm=site.lm) shares a model that is loaded
    read(site, "Once upon a time", top=10)            # -> Reading
    effects(site, [27, 30], tokens=4096)              # -> Effects
    steered(site, [27], "Once upon a time", [1, 2])   # -> Steered

They return frozen dataclasses of plain data (JSON after `asdict` and `hsae.inspect.view.finite`), and raise `UserError`
for what a user can mend. One call at a time for each language model: an edit is a hook on it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hsae.config import require
from hsae.errors import Interrupted, UserError
from hsae.lists import latent_list, strength_list

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from hsae.inspect.ink import Ink
    from hsae.intervene.site import Site


@dataclass(frozen=True)
class AblateConfig:
    """What to take out of the model, and where to measure what that costs."""

    latent: str = ""
    """latents to ablate, such as 27 or 27,30-40: each alone, and all together"""
    run: str = ""
    """name or path of a run; empty: the newest"""
    setup: str = ""
    """setup to look into; empty: the run's first"""
    seed: int | None = None
    """random seed of the setup; unset: its first"""
    on: str = ""
    """store to measure on; empty: the one trained on"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""
    set_to: float = 0.0
    """activation to give a latent wherever it fires, instead of taking it out"""
    which: Literal["held-out", "strongest"] = "held-out"
    """the store's last sequences, which training holds out, or those in which the latents fire most strongly"""
    tokens: int = 8_192
    """tokens to measure on, rounded up to whole sequences; of strongest sequences there are 16 for a latent at most"""
    controls: int = 3
    """random directions, and other latents of like firing rate, that each ablation is compared with; 0: none"""
    control_seed: int = 0
    """random seed of the controls"""
    batch: int = 1
    """sequences in one pass of the model; more pay on a GPU"""
    device: str = "auto"
    """cuda, mps, cpu, or auto"""
    model: str = ""
    """hub id, folder or .gguf file of the language model; empty: where the store's manifest says"""
    trust_remote_code: bool = False
    """let the model's repository run its own code"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        latent_list(self.latent)
        require(self.tokens >= 1, "tokens", "1 or above", self.tokens)
        require(self.controls >= 0, "controls", "0 or above", self.controls)
        require(self.batch >= 1, "batch", "1 or above", self.batch)


@dataclass(frozen=True)
class SteerConfig:
    """What to push, how hard, and what to write."""

    latent: str = ""
    """latent to steer by, or several at once, such as 27 or 27,30"""
    prompt: str = ""
    """text to go on from; - reads the standard input"""
    strength: str = "1"
    """how hard to push, or several strengths, such as 0,1,2,-1; in units of `unit`"""
    unit: Literal["max", "mean", "activation"] = "max"
    """what a strength of 1 is: the latent's highest activation on the store, its mean where it fires, or just 1"""
    clamp: bool = False
    """set the latent to the strength instead of adding it; a strength of 0 then takes the latent out"""
    prompt_too: bool = False
    """change the prompt's positions too, not only those that predict what is written"""
    tokens: int = 40
    """the most tokens to write"""
    temperature: float = 0.0
    """temperature of sampling; 0 takes the likeliest token"""
    sampling_seed: int = 0
    """random seed of sampling, the same for every strength"""
    run: str = ""
    """name or path of a run; empty: the newest"""
    setup: str = ""
    """setup to look into; empty: the run's first"""
    seed: int | None = None
    """random seed of the setup; unset: its first"""
    on: str = ""
    """store that says what is usual; empty: the one trained on"""
    hook: str = ""
    """hook point of that store; empty: the one trained on"""
    device: str = "auto"
    """cuda, mps, cpu, or auto"""
    model: str = ""
    """hub id, folder or .gguf file of the language model; empty: where the store's manifest says"""
    trust_remote_code: bool = False
    """let the model's repository run its own code"""
    json: bool = False
    """print one JSON document"""

    def __post_init__(self) -> None:
        latent_list(self.latent)
        strength_list(self.strength)
        require(self.tokens >= 1, "tokens", "1 or above", self.tokens)
        require(self.temperature >= 0, "temperature", "0 or above", self.temperature)


def ablate(settings: AblateConfig, console: Console | None = None) -> None:
    """Print what ablating latents costs the model.

    Args:
        settings: what to ablate, and where to measure.
        console: where to print; the standard output if not given. Progress goes to the standard error.

    Raises:
        UserError: a run, setup, seed, latent, store, hook point or model that is not there, or another model's store.
    """
    from hsae.intervene.drawing import draw_effects
    from hsae.intervene.effects import effects
    from hsae.terminal import Terminal

    latents = _latents("ablate", settings.latent)
    with _stopped():
        found = effects(
            _site(settings),
            latents,
            set_to=settings.set_to,
            which=settings.which,
            tokens=settings.tokens,
            controls=settings.controls,
            control_seed=settings.control_seed,
            batch=settings.batch,
            console=Terminal(stderr=True),
        )
    _show(found, draw_effects, settings.json, console or Terminal())


def steer(settings: SteerConfig, console: Console | None = None) -> None:
    """Print what the model writes at each strength.

    Args:
        settings: what to push, how hard, and what to write.
        console: where to print; the standard output if not given. Progress goes to the standard error.

    Raises:
        UserError: as `ablate`; or a prompt that is empty, no text, or as long as the model's context.
    """
    from hsae.intervene.drawing import draw_steered
    from hsae.intervene.steering import steered
    from hsae.terminal import Terminal

    latents, prompt = _latents("steer", settings.latent), _prompt(settings.prompt)
    with _stopped():
        found = steered(
            _site(settings),
            latents,
            prompt,
            strength_list(settings.strength),
            unit=settings.unit,
            clamp=settings.clamp,
            prompt_too=settings.prompt_too,
            tokens=settings.tokens,
            temperature=settings.temperature,
            sampling_seed=settings.sampling_seed,
            console=Terminal(stderr=True),
        )
    _show(found, draw_steered, settings.json, console or Terminal())


@contextlib.contextmanager
def _stopped() -> Iterator[None]:
    """Say of Ctrl-C no more than is true: here nothing is kept to go on from."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) if isinstance(stop, Interrupted) else "stopped") from None


def _latents(verb: str, text: str) -> tuple[int, ...]:
    latents = latent_list(text)
    if not latents:
        raise UserError(f"{verb} what? --latent 27 names a latent; hsae inspect shows which are worth a look")
    return latents


def _prompt(text: str) -> str:
    if text != "-":
        if not text:
            raise UserError('nothing to go on from: --prompt "Once upon a time", or --prompt - for the standard input')
        return text
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise UserError("the prompt on the standard input is not UTF-8 text") from None


def _site(settings: AblateConfig | SteerConfig) -> Site:
    from hsae.intervene.site import open_site

    return open_site(
        settings.run,
        settings.setup,
        settings.seed,
        settings.on,
        settings.hook,
        settings.model,
        settings.device,
        settings.trust_remote_code,
    )


def _show(
    found: Any, draw: Callable[[Any, Ink, int], Iterator[RenderableType]], as_json: bool, console: Console
) -> None:
    from hsae.inspect.ink import Ink
    from hsae.plain import finite

    if as_json:
        console.file.write(json.dumps(finite(asdict(found)), indent=1, allow_nan=False) + "\n")
        return
    for part in draw(found, Ink.of(console), console.width):
        console.print(part)
