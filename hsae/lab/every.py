"""`hsae lab all`: every experiment at one scale, as one report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsae.lab import LabConfig

if TYPE_CHECKING:
    from rich.console import Console

INTRODUCTION = (
    "Four systems that use the rules of `hsae`, each beside the figures of the text that it comes from. All numbers "
    "and figures are made by the command above each chapter; `report.json` has them all."
)


@dataclass(frozen=True)
class AllConfig(LabConfig):
    """All experiments of the lab, one after another."""

    images: str = ""
    """labelled images for alignment and nm-hebb: CIFAR-10, Fashion-MNIST, a folder of class folders; empty: digits"""
    text: str = ""
    """text file for hybrid-lm, stories with <|endoftext|> or blank lines between; empty: the bundled stories"""


def every(settings: AllConfig, console: Console | None = None) -> Path:
    """Do what is not done yet, and write the report; its path.

    Args:
        settings: the scale, and what to read.
        console: where to show progress; None shows nothing.

    Raises:
        UserError: images or text that cannot be read, a device that is not there, or matplotlib is not installed.
        KeyboardInterrupt: on Ctrl-C; the same call goes on from there.
    """
    from hsae.canvas import available
    from hsae.device import choose_device
    from hsae.files import alone
    from hsae.lab.alignment import AlignmentConfig
    from hsae.lab.alignment.job import chapter as alignment
    from hsae.lab.chapter import Chapter, S, folder_of, write
    from hsae.lab.hybrid_lm import HybridLMConfig
    from hsae.lab.hybrid_lm.job import chapter as hybrid_lm
    from hsae.lab.hybrid_lm.text import read
    from hsae.lab.images import load_images
    from hsae.lab.nm_hebb import NMHebbConfig
    from hsae.lab.nm_hebb.job import chapter as nm_hebb
    from hsae.lab.surgery import SurgeryConfig
    from hsae.lab.surgery.study import chapter as surgery
    from hsae.progress import say

    available("lab")
    # A mistake in the last experiment's input is no use after half an hour.
    choose_device(settings.device)
    load_images(settings.images)
    read(settings.text, "", 1)
    out = folder_of(settings, "all")
    common: dict[str, Any] = {f.name: getattr(settings, f.name) for f in dataclasses.fields(LabConfig)} | {"out": ""}
    began, chapters = time.monotonic(), list[Chapter]()

    def add(make: Callable[[S, Path, Console | None], Chapter], config: S) -> None:
        chapters.append(make(config, out, console))
        if console is not None:
            minutes = (time.monotonic() - began) / 60
            say(console, f"{chapters[-1].title}: done; {minutes:.1f} min since the start")

    with alone(out, "hsae lab all"):
        add(surgery, SurgeryConfig(**common))
        add(alignment, AlignmentConfig(**common, images=settings.images))
        add(hybrid_lm, HybridLMConfig(**common, text=settings.text))
        add(nm_hebb, NMHebbConfig(**common, images=settings.images))
        report = write(out, "The lab", chapters, INTRODUCTION)
    if console is not None:
        say(console, f"report: {report}, and report.html beside it")
    return report
