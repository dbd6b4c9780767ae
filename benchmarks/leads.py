"""Classical local rules for sparse codes, side by side, each read out in one feed-forward pass and by iteration.

    python benchmarks/leads.py stories260k                          # about 6 minutes on one core
    python benchmarks/leads.py stories260k --steps 20 --l0 8        # a trial
    HSAE_CACHE=/tmp/pc python benchmarks/leads.py stories260k       # finds the residual-hebb runs of pareto.py there

    random            unit rows as drawn: what a read-out makes of a dictionary that learned nothing
    k-wta             tied competitive Hebb: the k most driven rows move towards the input; with or without a
                      homeostatic bias that only decides who wins
    competitive       Hebb's rule from the residual, on a top-k code settled by lateral inhibition (LCA: Rozell et al.,
                      Neural Computation 20, 2008), computed through the residual; rows that do not fire are re-seeded
    + encoder         the same dictionary and a one-pass encoder that learns the settled code by a delta rule with
                      decorrelated inputs, while the dictionary learns (along) or afterwards (after)
    inhibition        Oja-type rows, anti-Hebbian lateral weights, homeostatic thresholds (Földiák, Biol. Cybern. 64,
                      1990; SAILnet: Zylberberg et al., PLoS Comput. Biol. 7, 2011), in graded units; 512 latents
    residual-hebb     the shipped setup, from the run that pareto.py left, or else trained here

Numbers are pooled EVR (hsae/metrics.py) over the store's last 16,384 tokens. One pass: decode the k highest drives, as
they are (raw) or with the best gain for each token (gain: needs the input again, so not feed-forward). Iterative: the
method's own settling, and matching pursuit of k steps with codes of 0 or above. Rows without an encoder have gain 1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from hsae import Store, TrainConfig, UserError, load, train
from hsae.rules import Weights
from hsae.rules.delta import Delta
from hsae.rules.residual import Residual

HELD_OUT, LATENTS, FEW = 16384, 3200, 512
SETTLE, RATE = 10, 0.6  # steps of competition, and the rate of each times √L0
RESEED = 10  # steps between looks for rows that do not fire
COLUMNS = ("raw", "gain", "settled", "pursuit")


@dataclass
class Row:
    """One line of the table; EVR in `COLUMNS`. `dead`: latents that one pass never uses on the held-out tokens."""

    method: str
    l0: int
    latents: int
    steps: int
    batch: int
    raw: float
    gain: float
    pursuit: float
    dead: int
    seconds: float
    settled: float | None = None
    settled_l0: float | None = None


@dataclass
class Coder:
    """An encoder (latents compete by the drive plus `favour`), a dictionary, and how the training went."""

    method: str
    W: Tensor
    b: Tensor
    D: Tensor
    favour: Tensor
    steps: int = 0
    batch: int = 0
    seconds: float = 0.0

    def encode(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values and indices of the k latents that one pass leaves."""
        u = torch.addmm(self.b, x, self.W.T)
        best = (u + self.favour).topk(k, sorted=False).indices
        return u.gather(1, best).relu(), best


def unit_rows(latents: int, width: int) -> Tensor:
    """The rows that all dictionaries begin with."""
    return normalize(torch.randn(latents, width, generator=torch.Generator().manual_seed(0)))


def plain(method: str, D: Tensor) -> Coder:
    """A tied coder without a bias."""
    zero = torch.zeros(len(D))
    return Coder(method, D, zero, D, zero)


def data(name: str, hook: str) -> tuple[Tensor, Tensor, Tensor, float]:
    """Training rows, shuffled, and held-out rows, all centred and of mean variance 1; that mean and that scale."""
    store = Store.open(name)
    hook, _ = store.hook(hook)
    first = store.manifest.sequences + -HELD_OUT // store.manifest.context
    taught, held = (
        torch.cat([c.activations[c.keep] for c in store.chunks(hook, 64, *span)]) for span in ((0, first), (first, None))
    )
    mean = taught.mean(0)
    scale = float((taught - mean).square().mean().rsqrt())
    order = torch.randperm(len(taught), generator=torch.Generator().manual_seed(0))
    return (taught[order] - mean) * scale, (held - mean) * scale, mean, scale


def batches(x: Tensor, steps: int, size: int) -> Iterator[tuple[float, Tensor]]:
    """Each step's learning factor, which falls to 0 over the last 30% of the steps, and its tokens."""
    for step in range(steps):
        start = step * size % (len(x) - size + 1)
        yield min(1.0, (steps - step) / (0.3 * steps)), x[start : start + size]


def decode(code: tuple[Tensor, Tensor], D: Tensor) -> Tensor:
    """The reconstruction of values and indices."""
    return embedding_bag(code[1], D, per_sample_weights=code[0], mode="sum")


def dense(code: tuple[Tensor, Tensor], latents: int) -> Tensor:
    """Values and indices as [token, latent]."""
    return torch.zeros(len(code[0]), latents).scatter_(1, code[1], code[0])


def best_gain(x: Tensor, decoded: Tensor) -> Tensor:
    """For each token, the factor of its reconstruction that leaves the least error."""
    return ((x * decoded).sum(1) / decoded.square().sum(1).clamp(min=1e-30))[:, None]


def settle(x: Tensor, D: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The top-k code after a few steps of u += rate · (D r + y - u), which is inhibition by D Dᵀ without that matrix."""
    rate, u, r = RATE / k**0.5, torch.zeros(len(x), len(D)), x
    value, best = torch.zeros(len(x), k), torch.zeros(len(x), k, dtype=torch.int64)
    for _ in range(SETTLE):
        u.mul_(1 - rate).addmm_(r, D.T, alpha=rate).scatter_add_(1, best, rate * value)
        value, best = u.topk(k, sorted=False)
        value.relu_()
        r = x - decode((value, best), D)
    return value, best


def pursuit_error(x: Tensor, D: Tensor, k: int) -> Tensor:
    """What matching pursuit by unit rows leaves after k steps."""
    r, D = x.clone(), normalize(D)
    for _ in range(k):
        value, best = (r @ D.T).max(1)
        r -= value.relu_()[:, None] * D[best]
    return r


def k_wta(x: Tensor, k: int, steps: int, bias: float) -> Coder:
    """Rows of unit length that move towards the inputs for which they win; `bias`: rise of a silent row's bias."""
    start, batch, rule = time.perf_counter(), 4096, Residual(lr=1.0)
    coder = plain("k-wta" + ", homeostatic bias" * (bias > 0), unit_rows(LATENTS, x.shape[1]))
    state, rate = rule.start(Weights(coder.D)), torch.full((LATENTS,), k / LATENTS)
    for factor, part in batches(x, steps, batch):
        y = dense(coder.encode(part, k), LATENTS)
        # Hebb in place of the residual: the input itself. Across the row, Oja's term is that of `Residual` too.
        sums = {"yr": y.T @ part, "yy": y.square().sum(0), "fired": torch.tensor(1.0), "tokens": torch.tensor(1.0)}
        change, state = rule.displacement(sums, Weights(coder.D), state)
        coder.W = coder.D = normalize(coder.D + factor * change.W)
        rate.lerp_((y > 0).float().mean(0), 0.1)
        coder.favour = coder.favour + factor * bias * (1 - rate * LATENTS / k).clamp(-1, 1)
    coder.steps, coder.batch, coder.seconds = steps, batch, time.perf_counter() - start
    return coder


def competitive(x: Tensor, k: int, steps: int, latents: int, given: Tensor | None = None) -> Coder:
    """The residual rule on the settled code, and an encoder that learns that code; `given`: a dictionary that stays."""
    start, batch = time.perf_counter(), 1024
    D = unit_rows(latents, x.shape[1]) if given is None else given
    coder = plain(f"competitive + encoder, {'along' if given is None else 'after'}", D)
    gain = float(best_gain(x[:batch], decode(coder.encode(x[:batch], k), D)).mean())
    coder.W = gain * D
    up, down = Delta(feedback="encoder"), Residual()
    above, below = up.start(Weights(coder.W, coder.b)), down.start(Weights(D))
    fired = torch.zeros(latents)
    for step, (factor, part) in enumerate(batches(x, steps, batch), 1):
        code = settle(part, coder.D, k)
        y, tokens = dense(code, latents), torch.tensor(float(batch))
        own = dense(coder.encode(part, k), latents)
        p = y - own
        sums = {"px": p.T @ part, "p": p.sum(0), "fired": own.sign().sum(0), "xx": part.T @ part, "tokens": tokens}
        change, above = up.displacement(sums, Weights(coder.W, coder.b), above)
        assert change.b is not None
        coder.W, coder.b = coder.W + factor * change.W, coder.b + factor * change.b
        if given is not None:
            continue
        r = part - decode(code, coder.D)
        count = y.sign().sum(0)
        sums = {"yr": y.T @ r, "yy": y.square().sum(0), "fired": count.sum(), "tokens": tokens}
        change, below = down.displacement(sums, Weights(coder.D), below)
        coder.D = normalize(coder.D + factor * change.W)
        fired += count
        if step % RESEED == 0:
            silent = (fired < 0.02 * fired.mean()).nonzero()[:batch, 0]
            if factor == 1.0 and len(silent):
                worst = r.square().sum(1).topk(len(silent)).indices
                coder.D[silent] = normalize(r[worst])
                coder.W[silent] = gain * coder.D[silent]
            fired.zero_()
    coder.steps, coder.batch, coder.seconds = steps, batch, time.perf_counter() - start
    return coder


def inhibited(x: Tensor, coder: Coder, lateral: Tensor) -> Tensor:
    """Graded units that settle under lateral inhibition; the threshold is the negative bias."""
    drive = torch.addmm(coder.b, x, coder.W.T)
    u = y = torch.zeros_like(drive)
    for _ in range(2 * SETTLE):
        u = torch.lerp(u, torch.addmm(drive, y, lateral, alpha=-1), 0.2)
        y = u.relu()
    return y


def inhibition(x: Tensor, k: int, steps: int) -> tuple[Coder, Tensor]:
    """Rows, lateral weights and thresholds learn from what settles, each by its own two activities."""
    start, batch, target = time.perf_counter(), 1024, k / FEW
    coder, rule = plain("inhibition", unit_rows(FEW, x.shape[1])), Residual(lr=1.0)
    lateral, state = torch.zeros(FEW, FEW), rule.start(Weights(coder.D))
    for factor, part in batches(x, steps, batch):
        y = inhibited(part, coder, lateral)
        on = y.sign()
        sums = {"yr": y.T @ part, "yy": y.square().sum(0), "fired": torch.tensor(1.0), "tokens": torch.tensor(1.0)}
        change, state = rule.displacement(sums, Weights(coder.D), state)
        coder.W = coder.D = normalize(coder.D + factor * change.W)
        lateral = (lateral + factor * 0.1 * (on.T @ on / batch / target - target)).clamp(min=0).fill_diagonal_(0)
        coder.b = coder.b - factor * 0.1 * (on.mean(0) / target - 1).clamp(-1, 1)
    coder.steps, coder.batch, coder.seconds = steps, batch, time.perf_counter() - start
    return coder, lateral


def shipped(store: str, k: int, mean: Tensor, scale: float) -> Coder:
    """The shipped setup's SAE, told to take rows that are centred and scaled as here."""
    try:
        sae = load(f"pareto-{store}-362-topk-l0-{k}", setup="residual-hebb", seed=0)
    except UserError:
        table = {"store": store, "setups": ["residual-hebb"], "steps": 362, "batch_tokens": 4096, "baselines": False}
        table |= {"setup": {"residual-hebb": {"sae": {"kind": "topk", "k": k}}}, "name": f"leads-{store}-l0-{k}"}
        table |= {"normalise": {"mode": "variance", "variance": 1.0}}
        train(TrainConfig.from_table(table, "leads"))
        sae = load(f"leads-{store}-l0-{k}")
    b, ratio = sae.b_enc + sae.scale * (sae.W_enc @ mean), scale / sae.scale
    # The decoder's bias is that mean. Codes times `ratio` are those of rows at this scale.
    return Coder("residual-hebb", sae.W_enc, b * ratio, sae.W_dec, torch.zeros(len(b)), 362, 4096)


def read_out(coder: Coder, x: Tensor, k: int, lateral: Tensor | None = None, competes: bool = False) -> Row:
    """One line of the table."""
    errors, used, active = {name: 0.0 for name in COLUMNS}, torch.zeros(len(coder.D)), 0.0
    for part in x.split(1024):
        code = coder.encode(part, k)
        used += dense(code, len(used)).sum(0)
        found = {"raw": decode(code, coder.D)}
        found["gain"] = found["raw"] * best_gain(part, found["raw"])
        if competes:
            found["settled"] = decode(settled := settle(part, coder.D, k), coder.D)
            active += float(settled[0].count_nonzero())
        elif lateral is not None:
            y = inhibited(part, coder, lateral)
            found["settled"] = (y @ coder.D) * best_gain(part, y @ coder.D)
            active += float(y.count_nonzero())
        found["pursuit"] = part - pursuit_error(part, coder.D, k)
        for name, decoded in found.items():
            errors[name] += float((part - decoded).square().sum())
    spread = float((x - x.mean(0)).square().sum())
    evr = {name: round(1 - error / spread, 4) for name, error in errors.items() if error}
    size, trained = len(used), (coder.steps, coder.batch)
    row = Row(coder.method, k, size, *trained, dead=int((used == 0).sum()), seconds=round(coder.seconds, 1), **evr)
    row.settled_l0 = round(active / len(x), 1) if active else None
    print(" | ".join(str(value) for value in asdict(row).values()), flush=True)
    return row


def main() -> None:
    """Read the command line, train, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--hook", default="")
    parser.add_argument("--l0", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("docs/pareto/leads.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    taught, held, mean, scale = data(args.store, args.hook)
    rows: list[Row] = []
    print(" | ".join(Row.__dataclass_fields__))
    for k in args.l0:
        rows.append(read_out(plain("random", unit_rows(LATENTS, held.shape[1])), held, k, competes=True))
        rows += [read_out(k_wta(taught, k, args.steps, bias), held, k) for bias in (0.0, 0.05)]
        for latents in (FEW, LATENTS):
            along = competitive(taught, k, args.steps, latents)
            alone = plain("competitive", along.D)
            alone.steps, alone.batch, alone.seconds = along.steps, along.batch, along.seconds
            rows += [read_out(coder, held, k, competes=True) for coder in (alone, along)]
        after = competitive(taught.flipud(), k, args.steps, LATENTS, along.D)
        rows.append(read_out(after, held, k, competes=True))
        rows.append(read_out(*_swap(inhibition(taught, k, args.steps), held, k)))
        rows.append(read_out(shipped(args.store, k, mean, scale), held, k, competes=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
