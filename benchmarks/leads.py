"""Classical local rules for sparse codes, side by side, each read out in one feed-forward pass and by iteration.

    python benchmarks/leads.py stories260k              # 9 minutes on one core; --steps 20 --l0 8: a trial

    random            unit rows as drawn
    k-wta             tied competitive Hebb: the k most driven rows move towards the input; with or without a
                      homeostatic bias, which decides who wins and is no part of the code
    competitive       Hebb's rule from the residual, on a top-k code settled by lateral inhibition (LCA: Rozell et al.,
                      Neural Computation 20, 2008), computed through the residual; rows that never fire are re-seeded
    + encoder         that learns the settled code for one pass, by a delta rule with decorrelated inputs, while the
                      dictionary learns (along) or after it (after, on other tokens)
    inhibition        Hebbian unit rows, anti-Hebbian lateral weights, homeostatic thresholds (Földiák, Biol. Cybern.
                      64, 1990; SAILnet: Zylberberg et al., PLoS Comput. Biol. 7, 2011), in graded units
    residual-hebb     the shipped setup, from a run of pareto.py or else trained here, 362 steps of 4,096 tokens

Numbers are pooled EVR over the store's last 16,384 tokens. One pass: decode the k highest drives, as they are (raw;
tied codes times one number, fitted to training tokens) or with each token's best gain (gain: needs the input again).
Iterative: the method's own settling (that of inhibition has an L0 of its own, and each token's best gain), and matching
pursuit of k steps, codes not below 0. dead: latents that one pass never uses on these tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from hsae import Store, TrainConfig, UserError, load, train
from hsae.rules import State, Weights
from hsae.rules.delta import Delta
from hsae.rules.residual import Residual

HELD_OUT, LATENTS, FEW, BATCH = 16384, 3200, 512, 2048
SETTLE, RATE = 10, 0.6  # steps of competition, and the rate of each, times √L0


@dataclass
class Coder:
    """An encoder, whose latents compete by the drive plus `favour`, and a dictionary; `batch`: tokens in a step."""

    method: str
    W: Tensor
    b: Tensor
    D: Tensor
    batch: int
    favour: Tensor

    def encode(self, x: Tensor, k: int) -> Tensor:
        """The code of one pass, [token, latent]."""
        u = torch.addmm(self.b, x, self.W.T)
        best = (u + self.favour).topk(k, sorted=False).indices
        return torch.zeros_like(u).scatter_(1, best, u.gather(1, best).relu())

    def scaled(self, x: Tensor, k: int) -> Coder:
        """The same with the one factor on its code that leaves the least error of these tokens."""
        decoded = self.encode(x, k) @ self.D
        gain = (x * decoded).sum() / decoded.square().sum()
        return Coder(self.method, gain * self.W, gain * self.b, self.D, self.batch, gain * self.favour)


def tied(method: str, D: Tensor, batch: int = BATCH) -> Coder:
    """One whose encoder is the dictionary."""
    return Coder(method, D, torch.zeros(len(D)), D, batch, torch.zeros(len(D)))


def unit_rows(latents: int, width: int) -> Tensor:
    """The rows that every dictionary begins with."""
    return normalize(torch.randn(latents, width, generator=torch.Generator().manual_seed(0)))


def data(name: str) -> tuple[Tensor, Tensor, Tensor, float]:
    """Training rows, shuffled, and held-out rows, all centred and of mean variance 1; that mean and that scale."""
    store = Store.open(name)
    hook, _ = store.hook()
    first = store.manifest.sequences + -HELD_OUT // store.manifest.context
    spans = store.chunks(hook, 64, 0, first), store.chunks(hook, 64, first)
    taught, held = (torch.cat([chunk.activations[chunk.keep] for chunk in span]) for span in spans)
    mean = taught.mean(0)
    scale = float((taught - mean).square().mean().rsqrt())
    order = torch.randperm(len(taught), generator=torch.Generator().manual_seed(0))
    return (taught[order] - mean) * scale, (held - mean) * scale, mean, scale


def batches(x: Tensor, steps: int, size: int) -> Iterator[tuple[float, Tensor]]:
    """Each step's learning factor, which falls to 0 over the last 30% of the steps, and its tokens."""
    for step in range(steps):
        start = step * size % (len(x) - size + 1)
        yield min(1.0, (steps - step) / (0.3 * steps)), x[start : start + size]


def refit(x: Tensor, decoded: Tensor) -> Tensor:
    """Each token's reconstruction times the factor that leaves the least error."""
    return decoded * ((x * decoded).sum(1) / decoded.square().sum(1).clamp(min=1e-30))[:, None]


def settle(x: Tensor, D: Tensor, k: int) -> Tensor:
    """The top-k code after some steps of u += rate · (D r + y - u): inhibition by D Dᵀ, without that matrix."""
    rate, u, r = RATE / k**0.5, torch.zeros(len(x), len(D)), x
    value, best = torch.zeros(len(x), k), torch.zeros(len(x), k, dtype=torch.int64)
    for _ in range(SETTLE):
        u.mul_(1 - rate).addmm_(r, D.T, alpha=rate).scatter_add_(1, best, rate * value)
        value, best = u.topk(k, sorted=False)
        r = x - embedding_bag(best, D, per_sample_weights=value.relu_(), mode="sum")
    return u.zero_().scatter_(1, best, value)


def pursue(x: Tensor, D: Tensor, k: int) -> Tensor:
    """The reconstruction by k steps of matching pursuit, with unit rows."""
    r, D = x.clone(), normalize(D)
    for _ in range(k):
        value, best = (r @ D.T).max(1)
        r -= value.relu_()[:, None] * D[best]
    return x - r


def hebb(D: Tensor, y: Tensor, post: Tensor, state: State, factor: float, lr: float) -> tuple[Tensor, State]:
    """Unit rows after a step of Hebb's rule between y and `post`, the residual or the input; averaged as shipped."""
    sums = {"yr": y.T @ post, "yy": y.square().sum(0), "fired": torch.ones(()), "tokens": torch.ones(())}
    change, state = Residual(lr=lr).displacement(sums, Weights(D), state)
    return normalize(D + factor * change.W), state


def k_wta(x: Tensor, k: int, steps: int, bias: float) -> Coder:
    """Rows move towards the inputs for which they win; `bias`: rise of the bias of a row that does not, in a step."""
    coder = tied("k-wta" + ", homeostatic bias" * (bias > 0), unit_rows(LATENTS, x.shape[1]))
    state, rate = Residual().start(Weights(coder.D)), torch.full((LATENTS,), k / LATENTS)
    for factor, part in batches(x, steps, BATCH):
        y = coder.encode(part, k)
        coder.D, state = hebb(coder.D, y, part, state, factor, lr=1.0)
        coder.W = coder.D
        rate.lerp_((y > 0).float().mean(0), 0.1)
        coder.favour = coder.favour + factor * bias * (1 - rate * LATENTS / k).clamp(-1, 1)
    return coder.scaled(x[:BATCH], k)


def competitive(x: Tensor, k: int, steps: int, latents: int, given: Tensor | None = None) -> Coder:
    """The residual rule on the settled code, and an encoder that learns that code; `given`: a dictionary that stays."""
    D = unit_rows(latents, x.shape[1]) if given is None else given
    coder = tied(f"competitive + encoder, {'along' if given is None else 'after'}", D).scaled(x[:BATCH], k)
    rule, below, gain = Delta(feedback="encoder"), Residual().start(Weights(D)), coder.W.norm() / D.norm()
    above, rate = rule.start(Weights(coder.W, coder.b)), torch.full((latents,), k / latents)
    for factor, part in batches(x, steps, BATCH):
        y, own = settle(part, coder.D, k), coder.encode(part, k)
        p = y - own  # the settled code less its own, over the winners of either
        sums = {"px": p.T @ part, "p": p.sum(0), "fired": own.sign().sum(0), "xx": part.T @ part}
        change, above = rule.displacement(sums | {"tokens": torch.tensor(BATCH)}, Weights(coder.W, coder.b), above)
        assert change.b is not None
        coder.W, coder.b = coder.W + factor * change.W, coder.b + factor * change.b
        if given is not None:
            continue
        r = part - y @ coder.D
        coder.D, below = hebb(coder.D, y, r, below, factor, Residual().lr / k**0.5)
        rate.lerp_(y.sign().mean(0), 0.1)
        if factor == 1.0 and len(silent := (rate < 0.02 * k / latents).nonzero()[:BATCH, 0]):
            coder.D[silent] = normalize(r[r.square().sum(1).topk(len(silent)).indices])
            coder.W[silent], rate[silent] = gain * coder.D[silent], k / latents
    return coder


def inhibited(x: Tensor, coder: Coder, lateral: Tensor) -> Tensor:
    """What graded units settle at under lateral inhibition; a threshold is a negative bias."""
    drive = torch.addmm(coder.b, x, coder.W.T)
    u = y = torch.zeros_like(drive)
    for _ in range(2 * SETTLE):
        u = torch.lerp(u, torch.addmm(drive, y, lateral, alpha=-1), 0.2)
        y = u.relu()
    return y


def inhibition(x: Tensor, k: int, steps: int) -> tuple[Coder, Tensor]:
    """Rows, lateral weights and thresholds learn from what settles, each by its own two activities."""
    coder, target = tied("inhibition", unit_rows(FEW, x.shape[1]), BATCH // 2), k / FEW
    state, lateral = Residual().start(Weights(coder.D)), torch.zeros(FEW, FEW)
    for factor, part in batches(x, steps, coder.batch):
        y = inhibited(part, coder, lateral)
        on, both = y.sign().mean(0), y.sign().T @ y.sign() / coder.batch
        coder.D, state = hebb(coder.D, y, part, state, factor, lr=1.0)
        coder.W = coder.D
        lateral = (lateral + factor * 0.03 * (both / target - target)).clamp(min=0).fill_diagonal_(0)
        coder.b = coder.b - factor * 0.3 * (on / target - 1).clamp(-1, 1)
    return coder.scaled(x[:BATCH], k), lateral


def shipped(store: str, k: int, mean: Tensor, scale: float) -> Coder:
    """The shipped setup's SAE, for rows that are centred and scaled as here; its decoder's bias is the mean too."""
    try:
        sae = load(f"pareto-{store}-362-local-l0-{k}", setup="residual-hebb", seed=0)
    except UserError:
        table = {"store": store, "setups": ["residual-hebb"], "steps": 362, "name": f"leads-{store}-l0-{k}"}
        table |= {"setup": {"residual-hebb": {"sae": {"kind": "topk", "k": k}}}, "batch_tokens": 4096}
        train(TrainConfig.from_table(table | {"normalise": {"mode": "variance", "variance": 1.0}}, "leads"))
        sae = load(f"leads-{store}-l0-{k}")
    b = (sae.b_enc + sae.scale * (sae.W_enc @ mean)) * (scale / sae.scale)
    return Coder("residual-hebb", sae.W_enc, b, sae.W_dec, 4096, torch.zeros_like(b))


def read_out(x: Tensor, k: int, steps: int, coder: Coder, lateral: Tensor | None = None) -> dict[str, str | float]:
    """One line of the table."""
    names, used, active = ("raw", "gain", "settled", "pursuit"), torch.zeros(len(coder.D)), 0
    errors = torch.zeros(len(names))
    for part in x.split(1024):
        code = coder.encode(part, k)
        used += code.sum(0)
        y = settle(part, coder.D, k) if lateral is None else inhibited(part, coder, lateral)
        active += int(y.count_nonzero())
        raw, settled = code @ coder.D, y @ coder.D
        found = (raw, refit(part, raw), settled if lateral is None else refit(part, settled), pursue(part, coder.D, k))
        errors += torch.stack([(part - decoded).square().sum() for decoded in found])
    row = {"method": coder.method, "l0": k, "latents": len(used), "steps": steps, "batch": coder.batch}
    evr = 1 - errors / (x - x.mean(0)).square().sum()
    row |= {name: round(value, 4) for name, value in zip(names, evr.tolist(), strict=True)}
    row |= {"settled_l0": round(active / len(x), 1), "dead": int((used == 0).sum())}
    print(" | ".join(map(str, row.values())), flush=True)
    return row


def main() -> None:
    """Read the command line, train, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--l0", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/pareto/leads.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    taught, held, mean, scale = data(args.store)
    rows, steps = [], args.steps
    for k in args.l0:
        drawn = tied("random", unit_rows(LATENTS, held.shape[1]), 0).scaled(taught[:BATCH], k)
        rows.append(read_out(held, k, 0, drawn))
        rows += [read_out(held, k, steps, k_wta(taught, k, steps, bias)) for bias in (0.0, 0.05)]
        few, along = (competitive(taught, k, steps, latents) for latents in (FEW, LATENTS))
        pairs = [(tied("competitive", c.D).scaled(taught[:BATCH], k), c) for c in (few, along)]
        rows += [read_out(held, k, steps, coder) for pair in pairs for coder in pair]
        rows.append(read_out(held, k, 2 * steps, competitive(taught[steps * BATCH :], k, steps, LATENTS, along.D)))
        rows.append(read_out(held, k, steps, *inhibition(taught, k, steps)))
        rows.append(read_out(held, k, 362, shipped(args.store, k, mean, scale)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
