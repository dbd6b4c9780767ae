"""Training steps on a GPU: eager PyTorch, torch.compile, sae-lens, and hsae's fused kernels with and without a graph.

    python benchmarks/gpu.py                    # 8 minutes at most; --quick: sizes to see that it runs

First the device's own limits (a copy, matrix products); then every kernel against its reference in float64, which must
agree; then tuning; then steps, in turns on the same activations, which lie in the device's memory. A step is the whole
step: forward, gradients, clipping, Adam, or SoftHebb's update. Results go to `benchmarks/results/DATE-gpu-DEVICE.*`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_checks import checks, inputs
from gpu_steps import DEVICE, Sizes, Step, activations, compiled, eager, ours, profile, sae_lens, softhebb_eager, sweep
from torch import Tensor

MODES = ("", " fused", " fused+graph")
RESULTS = Path(__file__).parent / "results"


def limits() -> dict[str, float]:
    """What the device does at best: TB/s of a copy, read and written, and TFLOP/s of a square product."""
    from triton.testing import do_bench

    source = torch.randn(1 << 28, device=DEVICE)
    there = torch.empty_like(source)
    ms: Any = do_bench(lambda: there.copy_(source), return_mode="median")
    found = {"copy TB/s": 2 * source.nbytes / ms / 1e9}
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("ieee", torch.float32)):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=dtype) for _ in range(2))
        ms = do_bench(lambda a=a, b=b: a @ b, rep=200, return_mode="median")
        found[f"{name} TFLOP/s"] = 2 * 8192**3 / ms / 1e9
    torch.set_float32_matmul_precision("highest")
    return found


def tune_all(sizes: Sizes, products: str) -> dict[str, dict[str, float]]:
    """Time each kernel with each of its tiles, milliseconds; the best are remembered."""
    from hsae.kernels import triton_relu as relu
    from hsae.kernels import triton_softhebb as softhebb
    from hsae.kernels import triton_topk as topk
    from hsae.kernels.triton_tiles import tune

    x, W_enc, W_dec, b, l1 = inputs(sizes.batch, sizes.latents, sizes.width, products)
    precision: Any = "ieee" if products == "bf16" else products
    made = relu.forward(x, W_enc, b, W_dec, precision=precision)
    first = softhebb.compete(x, W_enc, b, 50.0, precision=precision)
    sums = lambda t: softhebb.statistics(x, W_enc, b, 50.0, True, first, precision=precision, tiles=t)  # noqa: E731
    back = lambda t: relu.gradients(x, made.error, W_enc, b, W_dec, l1, precision=precision, tiles=t)  # noqa: E731
    runs: dict[str, Callable[[Any], object]] = {
        "relu.forward": lambda t: relu.forward(x, W_enc, b, W_dec, precision=precision, tiles=t),
        "relu.gradients": back,
        "softhebb.compete": lambda t: softhebb.compete(x, W_enc, b, 50.0, precision=precision, tiles=t),
        "softhebb.statistics": sums,
    }
    found = {name: tune(name, x, run, precision) for name, run in runs.items()}
    choose = lambda t: topk.choose(x, W_enc, b, sizes.k, precision=precision, tiles=t)  # noqa: E731
    found["topk"] = tune("topk", x, choose, precision, sizes.k)
    return {name: {str(tiles): ms for tiles, ms in times.items()} for name, times in found.items()}


def same(x: Tensor, sizes: Sizes) -> str:
    """Whether a captured step computes, over a few, what its kernels do when launched one by one."""
    try:
        found = []
        for step in (ours("bp", sizes, "tf32", mode) for mode in MODES[1:]):
            for batch in x[:10]:
                step(batch)
            found.append(step.tensors())  # pyright: ignore[reportFunctionMemberAccess]
    except Exception as reason:  # said, and what can be timed is timed
        return f"failed: {type(reason).__name__}: {str(reason)[:300]}"
    far = [key for key, value in found[0].items() if not torch.equal(value.cpu(), found[1][key].cpu())]
    return f"differ in {far}" if far else "equal to the bit"


def timed(steps: dict[str, Step], x: Tensor, sizes: Sizes) -> dict[str, list[float]]:
    """Milliseconds a step of each, round by round, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    number = 0
    for round_ in range(sizes.rounds + 1):
        for name, step in steps.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(sizes.steps):
                number += 1
                step(x[number % len(x)])
            torch.cuda.synchronize()
            if round_:  # the first warms up
                times[name].append((time.perf_counter() - began) / sizes.steps * 1000)
    return times


def table(times: dict[str, list[float]], sizes: Sizes, base: str) -> str:
    """Median, range, tokens a second, and how many times the first's rate."""
    lines = ["| step | ms, median (range) | M tokens/s | × " + base + " |", "|---|---|---|---|"]
    middle = {name: statistics.median(values) for name, values in times.items() if values}
    for name, ms in middle.items():
        low, high, ratio = min(times[name]), max(times[name]), middle.get(base, float("nan")) / ms
        lines.append(f"| {name} | {ms:.3f} ({low:.3f}-{high:.3f}) | {sizes.batch / ms / 1000:.1f} | {ratio:.1f} |")
    return "\n".join(lines)


def rates(sizes: Sizes, tiles: dict[str, dict[str, dict[str, float]]]) -> str:
    """Each kernel with its best tiles: milliseconds, and TFLOP/s of the products in it."""
    products = {"relu.forward": 2, "relu.gradients": 4, "softhebb.compete": 1, "softhebb.statistics": 2, "topk": 2}
    lines = ["| kernel | products | tiles | ms | TFLOP/s |", "|---|---|---|---|---|"]
    for precision, kernels in tiles.items():
        for name, times in kernels.items():
            if times:
                best, ms = min(times.items(), key=lambda item: item[1])
                rate = products[name] * 2 * sizes.batch * sizes.latents * sizes.width / ms / 1e9
                lines.append(f"| {name} | {precision} | {best} | {ms:.3f} | {rate:.0f} |")
    return "\n".join(lines)


def floors(sizes: Sizes, found: dict[str, float]) -> str:
    """How long a step's products take at the device's best bf16 rate, and how fast that would be."""
    one = 2 * sizes.batch * sizes.latents * sizes.width / found["bf16 TFLOP/s"] / 1e9
    rows = (("backprop, 5 products", 5), ("backprop, code computed twice, 6", 6), ("SoftHebb tied, 3", 3))
    return "\n".join(f"- {name}: {n * one:.3f} ms, {sizes.batch / n / one / 1000:.0f} M tokens/s" for name, n in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 64), ("latents", 3200), ("batch", 16384), ("k", 32), ("seconds", 450)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--sweep", action="store_true", help="also other sizes, while time is left")
    parser.add_argument("--quick", action="store_true", help="few steps, no compiling of peers")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device here; nothing was measured", file=sys.stderr)
        return 2
    began, left = time.monotonic(), lambda: given.seconds - (time.monotonic() - began)
    few = {"steps": 5, "rounds": 2} if given.quick else {}
    sizes = Sizes(given.width, given.latents, given.batch, given.k, **few)
    device, torch_version = torch.cuda.get_device_name(), torch.__version__
    record: dict[str, Any] = {"device": device, "torch": torch_version, "sizes": vars(sizes), "limits": limits()}
    print(f"{device}, PyTorch {torch_version}: {record['limits']}", flush=True)
    record["errors"] = checks()
    wrong = [f"{name}: {error}" for name, error in record["errors"].items() if not error < 1]
    print("against float64: " + ("; ".join(wrong) or "all agree"), f"({left():.0f} s left)", flush=True)
    if wrong:
        return 1
    record["tiles"] = {products: tune_all(sizes, products) for products in ("bf16", "tf32", "tf32x3", "ieee")}
    print(rates(sizes, record["tiles"]), f"\n({left():.0f} s left)", flush=True)
    x = activations(sizes)
    record["graph"] = same(x, sizes)
    print("the captured step and the same step launch by launch:", record["graph"], flush=True)
    text = [
        f"# {device}",
        f"PyTorch {torch_version}; {vars(sizes)}",
        json.dumps(record["limits"]),
        floors(sizes, record["limits"]),
        rates(sizes, record["tiles"]),
    ]
    groups: dict[str, tuple[str, dict[str, Callable[[], Step]]]] = {
        "backprop, ReLU": (
            "eager ieee",
            {f"eager {p}": lambda p=p: eager(sizes, p) for p in ("ieee", "tf32", "bf16")}
            | {f"compiled {p}": lambda p=p: compiled(sizes, p) for p in ("tf32", "bf16") if not given.quick}
            | {"sae-lens": lambda: sae_lens(sizes, x)}
            | {
                f"hsae {p}{g}": lambda p=p, g=g: ours("bp", sizes, p, g)
                for p in ("ieee", "tf32", "bf16")
                for g in MODES
            },
        ),
        "SoftHebb tied": (
            "eager ieee",
            {f"eager {p}": lambda p=p: softhebb_eager(sizes, p) for p in ("ieee", "tf32")}
            | {
                f"hsae {p}{g}": lambda p=p, g=g: ours("hebb-tied", sizes, p, g)
                for p in ("ieee", "tf32x3", "tf32")
                for g in MODES
            },
        ),
        "backprop, TopK": (
            "eager ieee",
            {f"eager {p}": lambda p=p: eager(sizes, p, sizes.k) for p in ("ieee", "bf16")}
            | {
                f"hsae {p}{g}": lambda p=p, g=g: ours("bp", sizes, p, g, sizes.k)
                for p in ("ieee", "bf16")
                for g in MODES
            },
        ),
    }
    record["steps"], record["failed"] = {}, {}
    for group, (base, makers) in groups.items():
        steps: dict[str, Step] = {}
        for name, make in makers.items():
            if left() < 20:
                record["failed"][f"{group}: {name}"] = "no time left"
                continue
            try:
                step = make()
                for i in range(6):
                    step(x[i % len(x)])
                torch.cuda.synchronize()
                steps[name] = step
            except Exception as reason:  # what fails is said, and the others go on
                record["failed"][f"{group}: {name}"] = f"{type(reason).__name__}: {str(reason)[:300]}"
        record["steps"][group] = timed(steps, x, sizes)
        text += [f"## {group}", table(record["steps"][group], sizes, base)]
        shown = [name for name in steps if name.endswith(" fused")][-1:]
        text += [f"{name}, by kernel:\n\n{profile(steps[name], x)}" for name in shown]
        print("\n".join(text[-3:]), f"\n({left():.0f} s left)", flush=True)
    if given.sweep:
        text.append(f"## hsae bf16 fused+graph, M tokens/s\n\n{sweep(sizes, 'bf16', left)}")
    text += [f"- failed: {name}: {reason}" for name, reason in record["failed"].items()]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = given.results / f"{date}-gpu-{device.lower().replace(' ', '-')}"
    given.results.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1))
    path.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
