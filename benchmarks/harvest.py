"""Activations of TinyStories-1M's shape: hsae beside TransformerLens and transformers, alternately in one run.

    python benchmarks/harvest.py --short                      # under a minute
    python benchmarks/harvest.py --out benchmarks/results

Random weights, 8 layers, d_model 64, 16 heads of 4, global and local attention in turn, window 256, vocabulary 50,257;
`blocks.4.hook_resid_pre` of 32 x 512 tokens in one batch. Every way is checked against the bridge first. The floor is
the arithmetic of four layers at the rates of this machine's sgemm and exp. From end to end: `hsae harvest` on the
bundled stories, beside the rate at which it computes when the tokens are in memory and nothing is kept. All of it under
both settings of PyTorch's huge pages, each in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

HOOK = "blocks.4.hook_resid_pre"
LAYERS, WIDTH, HEADS, CONTEXT, WINDOW, VOCABULARY = 4, 64, 16, 512, 256, 50_257
PAGES = {"0": "default", "1": "huge pages"}
BRIDGE, EAGER = "TransformerBridge", "transformers, eager, a hook that stops"
PYTORCH, KERNELS = "hsae, PyTorch alone (SDPA)", "hsae, C kernels"


class _Stop(Exception):
    pass


def make_model(folder: Path) -> None:
    """The model with random weights, saved in the hub's layout."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = GPTNeoConfig(
        attention_types=[[["global", "local"], LAYERS]],
        num_layers=2 * LAYERS,
        hidden_size=WIDTH,
        num_heads=HEADS,
        intermediate_size=4 * WIDTH,
        vocab_size=VOCABULARY,
        window_size=WINDOW,
        max_position_embeddings=2048,
    )
    GPTNeoForCausalLM(config).save_pretrained(folder)


def contenders(folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each way to the activations: tokens [sequence, position] -> [sequence, position, width]."""
    from transformers import AutoModelForCausalLM

    from hsae.kernels import attention, dense, native
    from hsae.loading import BUNDLED, load_lm
    from hsae.tapping import FastTap, read_parts

    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    lm = load_lm(str(folder), device="cpu", tokenizer=str(BUNDLED))
    parts = read_parts(lm.bridge)
    assert parts is not None
    tap = FastTap(parts)

    def compiled(tokens: Tensor) -> Tensor:
        return tap.tap(tokens, (HOOK,))[HOOK]

    def pytorch(tokens: Tensor) -> Tensor:
        """As on a machine without a compiler."""
        with patch.object(attention, "_library", lambda: None), patch.object(dense, "_library", lambda: None):
            return compiled(tokens)

    def eager(tokens: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def stop(module: Any, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0].clone())
            raise _Stop

        handle = model.transformer.h[LAYERS].register_forward_pre_hook(stop)
        try:
            with torch.inference_mode():
                model.transformer(tokens)
        except _Stop:
            pass
        finally:
            handle.remove()
        return seen[0]

    ways = {BRIDGE: lambda tokens: lm.tap(tokens, (HOOK,))[HOOK], EAGER: eager, PYTORCH: pytorch}
    return ways | ({KERNELS: compiled} if native.load("attention") is not None else {})


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine_rates() -> dict[str, float]:
    """sgemm's multiplications and additions a second, and exponentials a second: the best of many."""
    a, b = torch.randn(2, 1024, 1024)
    x = torch.randn(1 << 20)
    product, power = torch.empty_like(a), torch.empty_like(x)
    return {
        "sgemm": 2 * 1024**3 / min(seconds(lambda: torch.mm(a, b, out=product)) for _ in range(40)),
        "exp": len(x) / min(seconds(lambda: torch.exp(x, out=power)) for _ in range(40)),
    }


def floor(rates: dict[str, float]) -> float:
    """Tokens a second if nothing but the four layers' products and exponentials took time."""
    projections = LAYERS * 2 * 12 * WIDTH * WIDTH
    everything = sum(range(1, CONTEXT + 1)) / CONTEXT
    local = sum(min(i, WINDOW) for i in range(1, CONTEXT + 1)) / CONTEXT
    keys = LAYERS // 2 * (everything + local)
    return 1 / ((projections + keys * 4 * WIDTH) / rates["sgemm"] + keys * HEADS / rates["exp"])


def compute(folder: Path, sequences: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of every way, in so many rounds, and how far each is from the bridge."""
    tokens = torch.randint(0, VOCABULARY, (sequences, CONTEXT), generator=torch.Generator().manual_seed(0))
    ways = contenders(folder)
    right = ways[BRIDGE](tokens)
    errors = {name: ((way(tokens) - right).norm() / right.norm()).item() for name, way in ways.items()}
    assert max(errors.values()) < 1e-5, errors
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(tokens.numel() / seconds(lambda way=way: way(tokens)))
    return {"sequences": sequences, "rates": rates, "errors": errors}


def end_to_end(folder: Path, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of whole harvests, of text and of token ids, and of computing alone, in turns."""
    import pyarrow.parquet as parquet

    from hsae.harvesting import HarvestConfig, harvest
    from hsae.harvesting.text import BUNDLED as STORIES
    from hsae.loading import BUNDLED, load_lm

    lm = load_lm(str(folder), device="cpu", tokenizer=str(BUNDLED))
    ids = torch.randint(0, VOCABULARY, (-(-tokens // CONTEXT), CONTEXT), generator=torch.Generator().manual_seed(0))
    assert lm.trust_fast(ids[:2], (HOOK,)) == ""
    assert lm.trusts_fast((HOOK,))
    stories = parquet.read_table(STORIES)["text"].to_pylist()
    text, made = folder / "stories.txt", folder / "ids.npy"
    # Four characters a token are more than the tokeniser needs.
    copies = -(-4 * tokens // sum(map(len, stories)))
    text.write_text("<|endoftext|>".join(stories * copies))
    np.save(made, ids.numpy())
    rates: dict[str, list[float]] = {"computing alone": [], "harvest of token ids": [], "harvest of text": []}
    config = HarvestConfig(
        model=str(folder), tokenizer=str(BUNDLED), hooks=(HOOK,), tokens=tokens, context=CONTEXT, batch_sequences=batch
    )
    for number in range(rounds):

        def computing() -> None:
            for part in ids.split(batch):
                lm.tap(part, (HOOK,))

        rates["computing alone"].append(ids.numel() / seconds(computing))
        for name, data in (("harvest of token ids", made), ("harvest of text", text)):
            console = Console(file=io.StringIO(), width=200)
            shutil.rmtree(harvest(replace(config, data=(str(data),), name=f"{data.stem}-{number}"), console))
            assert isinstance(console.file, io.StringIO)
            (said,) = re.findall(r"([\d,]+) tokens/s$", console.file.getvalue().strip())
            rates[name].append(float(said.replace(",", "")))
    return {"tokens": tokens, "batch": batch, "rates": rates}


def measure(short: bool) -> dict[str, Any]:
    """Everything under this process's setting."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["HSAE_CACHE"] = str(Path(place) / "cache")
        folder = Path(place) / "model"
        before = machine_rates()
        make_model(folder)
        computed = compute(folder, *((8, 3) if short else (32, 5)))
        whole = end_to_end(folder, 32, *((1 << 18, 1) if short else (1 << 20, 3)))
        after = machine_rates()
    best = {name: max(before[name], after[name]) for name in before}
    return {"machine": best, "floor": floor(best), "compute": computed, "end to end": whole}


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(result: dict[str, Any]) -> str:
    """The result as markdown."""
    lines = [
        f"{result['date']}, {result['cpu']}, {result['threads']} threads, torch {result['torch']}. {result['note']}"
    ]
    for pages, found in result["settings"].items():
        computed, whole, best = found["compute"], found["end to end"], found["floor"]
        rates = {name: statistics.median(values) for name, values in computed["rates"].items()}
        lines += [
            "",
            f"**{pages}**: {computed['sequences']} x {CONTEXT} tokens, {len(computed['rates'][BRIDGE])} rounds. ",
        ]
        lines[-1] += (
            f"sgemm {found['machine']['sgemm'] / 1e9:,.0f} GFLOP/s, exp {found['machine']['exp'] / 1e9:.2f} G/s: "
        )
        lines[-1] += f"floor {best:,.0f} tokens/s."
        lines += ["", "| way | tokens/s | range | to the bridge | to the floor | error |", "|---|---|---|---|---|---|"]
        for name, values in computed["rates"].items():
            span, middle = f"{min(values):,.0f}–{max(values):,.0f}", rates[name]
            ratios = f"{middle / rates[BRIDGE]:.1f} | {best / middle:.1f}"
            lines.append(f"| {name} | {middle:,.0f} | {span} | {ratios} | {computed['errors'][name]:.1e} |")
        lines += ["", f"{whole['tokens']:,} tokens, {whole['batch']} contexts a batch:", ""]
        lines += ["| from end to end | tokens/s | range | of computing |", "|---|---|---|---|"]
        alone = statistics.median(whole["rates"]["computing alone"])
        for name, values in whole["rates"].items():
            middle = statistics.median(values)
            lines.append(f"| {name} | {middle:,.0f} | {min(values):,.0f}–{max(values):,.0f} | {middle / alone:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="8 sequences, few rounds")
    parser.add_argument("--out", type=Path, help="folder for harvest.json and harvest.md")
    parser.add_argument("--note", default="", help="a sentence about the machine, for the report")
    parser.add_argument("--threads", type=int, default=0, help="PyTorch's threads; 0: as many as it takes")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments.short)))
        return
    settings = {}
    for value, name in PAGES.items():
        # The allocator reads its setting once, when the process starts.
        command = [sys.executable, __file__, "--measure", *(["--short"] if arguments.short else [])]
        command += ["--threads", str(arguments.threads)]
        environment = os.environ | {"THP_MEM_ALLOC_ENABLE": value}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        settings[name] = json.loads(done.stdout.splitlines()[-1])
    result = {
        "date": date.today().isoformat(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "note": arguments.note,
        "settings": settings,
    }
    text = report(result)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "harvest.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "harvest.md").write_text(text)


if __name__ == "__main__":
    main()
