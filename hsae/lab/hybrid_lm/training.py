"""One training: the source's recipe for AdamW, its schedule and its evaluation, with any arm's plasticity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsae import config
from hsae.lab.hybrid_lm.arms import Plasticity
from hsae.lab.hybrid_lm.bdh import BDH
from hsae.lab.hybrid_lm.model import GPT, Size
from hsae.lab.hybrid_lm.plasticity import PRUNE, Plastic, bound
from hsae.lab.hybrid_lm.text import Rows, Stories, read

PROMPT, SAMPLES, TEMPERATURE, CHUNK = "Once upon a time", 8, 0.8, 64
NEAR = 0.9  # a weight of this share of the bound is at it


def schedule(step: int, warmup: int, steps: int, kind: str = "cosine") -> float:
    """The factor on AdamW's rate in step 0, 1, …: transformers' cosine with warm-up, to 0; or constant after it."""
    if step < warmup:
        return step / max(1, warmup)
    if kind == "constant":
        return 1.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(
    text: dict[str, Any],
    kind: str,
    size: dict[str, Any],
    arm: dict[str, Any],
    recipe: dict[str, Any],
    seed: int,
    device: str,
    code: str,
) -> dict[str, Any]:
    """Train one model.

    Args:
        text: `path` and `tokenizer` for `read`; whatever else tells the file's state.
        kind: gpt or bdh.
        size: of the model, but for its vocabulary.
        arm: a `Plasticity`.
        recipe: `steps`, `rows` of each, of which `micro` are the last micro-batch, `lr` and `decay` of AdamW, `held`
            rows of validation, and the `length` of a sample, in tokens.
        seed: of the weights, the rows and the samples.
        device: where to.
        code: what tells the state of the modules that this one uses.

    Returns:
        The curve by evaluation, each scaling, and what the weights, sparsity and samples are in the end.
    """
    stories = read(text["path"], text["tokenizer"], size["context"])
    torch.manual_seed(seed)
    model = {"gpt": GPT, "bdh": BDH}[kind](Size(vocabulary=stories.vocabulary, **size)).to(device)
    plasticity = config.build(Plasticity, arm, "arm")
    plastic, steps = Plastic(model, plasticity, recipe["micro"]), recipe["steps"]
    adam = torch.optim.AdamW(model.parameters(), recipe["lr"], weight_decay=recipe["decay"], fused=True)
    held, generator = stories.validation(recipe["held"], size["context"]), np.random.default_rng(seed)
    warm = round(plasticity.warm_share * steps) if plasticity.mode == "warm-start" else 0
    curve, scaled = [_state(model, plastic, held, 0)], []
    for step in range(1, steps + 1):
        backward = plasticity.mode in ("backprop", "hybrid") or step > warm > 0
        ids, labels = (t.to(device) for t in stories.batch(recipe["rows"], size["context"], generator))
        factor = schedule(step - 1 - warm, steps // 25, steps - warm, plasticity.schedule) if backward else 1.0
        model.train()
        with torch.set_grad_enabled(backward):
            losses = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        if backward:
            # The mean over all rows at once is the source's mean over micro-batches of the same size.
            losses.mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.param_groups[0]["lr"] = recipe["lr"] * factor
            adam.step()
            adam.zero_grad()
        if plasticity.mode in ("hybrid", "hebbian") or step <= warm:
            plastic.update(ids, losses, factor if plasticity.tied else 1.0)
        if step % (steps // 5) == 0:
            before = _state(model, plastic, held, step)
            if plastic.prune():
                scaled.append({"before": before, "after": _state(model, plastic, held, step)})
        if step % (steps // 10) == 0:
            curve.append(_state(model, plastic, held, step))
            if not math.isfinite(curve[-1]["loss"]):
                break
    whole = math.isfinite(curve[-1]["loss"])
    texts = sampled(model, size["context"], stories, recipe["length"], seed) if whole else []
    return {
        "curve": curve,
        "scaled": scaled,
        "calls": plastic.calls,
        "sparsity": _sparsity(model, plastic),
        "collapse": collapse(plastic.weights) if whole else None,
        "active": model.active.tolist() if isinstance(model, BDH) else None,
        "samples": [PROMPT + text for text in texts[:2]],
        "coherence": stories.coherence(texts) if whole else None,
        "tokens": len(stories.train),
        "vocabulary": stories.vocabulary,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def _state(model: nn.Module, plastic: Plastic, held: Rows, step: int) -> dict[str, Any]:
    """The loss on held-out rows, in nats per token, and the weights that plasticity is about."""
    model.eval()
    device, total = plastic.weights[0].device, 0.0
    for ids, labels in zip(*(t.split(CHUNK) for t in held), strict=True):
        logits = model(ids.to(device)).flatten(0, 1)
        total += float(F.cross_entropy(logits, labels.to(device).flatten(), reduction="sum"))
    sizes = torch.cat([W.abs().flatten() for W in plastic.weights])
    most = bound(plastic.arm.rate, plastic.arm.keep, step)
    return {
        "step": step,
        "loss": total / held[1].numel(),
        "mean": float(sizes.mean()),
        "max": float(sizes.max()),
        "bound": most,
        "at_bound": float((sizes > NEAR * most).float().mean()) if step else 0.0,
        "small": float((sizes <= PRUNE).float().mean()),
    }


@torch.no_grad()
def _sparsity(model: nn.Module, plastic: Plastic) -> dict[str, float]:
    """The source's sparsity, the share below 1e-6: of all parameters called weight, and of those that are pruned."""
    named = [p for name, p in model.named_parameters() if name.endswith("weight")]
    shares = {"all": named, "layers": plastic.weights}
    zeros = {k: sum(int((W.abs() < 1e-6).sum()) for W in weights) for k, weights in shares.items()}
    return {key: zeros[key] / sum(W.numel() for W in weights) for key, weights in shares.items()}


@torch.no_grad()
def collapse(weights: list[Tensor]) -> dict[str, float]:
    """How near weights are to one outer product of signs; means over tensors.

    Returns:
        `share`, of W's squared norm in its first singular direction; `signs`, the share of W's signs that this has.
    """
    share, signs = [], []
    for W in (each.cpu() for each in weights):
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        share.append(float(S[0] ** 2 / S.square().sum().clamp(min=1e-30)))
        signs.append(float(((U[:, :1] * V[:1]).sign() == W.sign()).float().mean()))
    return {"share": float(np.mean(share)), "signs": float(np.mean(signs))}


@torch.no_grad()
def sampled(model: nn.Module, context: int, stories: Stories, length: int, seed: int) -> list[str]:
    """Texts that go on from the prompt; without it."""
    model.eval()
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    start = stories.encode(PROMPT).tolist() or [stories.end]
    ids = torch.tensor([start] * SAMPLES)
    for _ in range(length):
        logits = model(ids[:, -context:].to(device))[:, -1].double().cpu()
        logits[:, stories.end] = -math.inf
        ids = torch.cat((ids, torch.multinomial((logits / TEMPERATURE).softmax(1), 1, generator=generator)), 1)
    return [stories.decode(row[len(start) :]) for row in ids.tolist()]
