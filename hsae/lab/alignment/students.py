"""Students that learn by some rule under weight decay and noise, many of them in one batched computation.

A student's parameters are one row of a matrix, so an optimiser is a few lines; and every rule is the gradient of one
scalar. With e the loss's derivative by the output this is ⟨output, e⟩ for backpropagation. For direct feedback
alignment (DFA) each layer's input is held fixed, and ⟨h_l, e B_l⟩ is added for each hidden layer, B_l random and fixed.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from hsae.alignment import Alignment, batch_cosine, cosine, inner, sample_cosine
from hsae.errors import UserError
from hsae.lab.alignment.plan import Students
from hsae.lab.images import load_images

FUNCTIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "linear": lambda z: z}
WIDTH, HIDDEN, HEADS, TOKENS, HELD_OUT = 32, 128, 4, 8, 2000
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def train(**arguments: Any) -> dict[str, Any]:
    """Train `Students(**arguments)`; measure their second layer (a transformer's: the second block's first MLP layer).

    Returns:
        `data` in words, and `students`, a dict each: gamma, sigma, seed; means over the window of batch_cos,
        sample_cos, inner, step_cos and `oscillation` (how often a neuron's ⟨g, H⟩ changes sign from step to step);
        start_norm (‖W‖_F) and history ([step, batch_cos, ‖W‖]); and what `_Bank.end` says of the final weights.

    Raises:
        UserError: a batch that is larger than the data, or images that cannot be read.
    """
    bank = _Bank(Students(**arguments))
    return {"data": bank.data, "students": bank.train()}


@dataclass(frozen=True)
class _Pass:
    """Outputs [run, sample, out], hidden activations (an MLP's), and the measured layer's input and output."""

    out: Tensor
    hidden: list[Tensor]
    h_a: Tensor
    z: Tensor


class _Bank:
    """The students, their data and their optimiser's state. Runs are in the order of `runs`, the seed fastest."""

    def __init__(self, s: Students) -> None:
        self.s, self.runs = s, list(itertools.product(s.gammas, s.sigmas, s.seeds))
        self.generators = [torch.Generator().manual_seed(seed) for seed in s.seeds]
        self.tokens, self.layer = (TOKENS, 6) if s.task == "transformer" else (1, 1)
        self._load()
        self.size, rows = s.batch // self.tokens, self.x.shape[1] * self.tokens
        if not 1 <= self.size <= self.x.shape[1]:
            raise UserError(
                f"a batch of {s.batch:,} samples cannot be drawn from {rows:,}, in sequences of {self.tokens}"
            )
        self.theta, self.frozen = self._each(self._drawn()), self._each(self._drawn())
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        shape = (2, self.shapes[-1][0], HIDDEN)
        drawn = torch.stack([torch.randn(shape, generator=g) / shape[1] ** 0.5 for g in self.generators])
        self.feedback = self._each(drawn).transpose(0, 1)
        self.gamma, self.sigma = (torch.tensor([[run[i]] for run in self.runs], device=s.device) for i in (0, 1))

    def _load(self) -> None:
        """The data, [seed or 1, sequence, token, channel], and the shapes (out, in) of the layers."""
        s = self.s
        if s.task == "images":
            found = load_images(s.images)
            xs = [F.avg_pool2d(x, s.pool).flatten(1)[None, :, None] for x in (found.x_train, found.x_test)]
            ys = [y[None, :, None, None] for y in (found.y_train, found.y_test)]
            self.data = f"{found.name}, {found.split}, {xs[0].shape[-1]:,} inputs"
        else:
            parts = [s.rows // self.tokens, HELD_OUT // self.tokens]
            xs = [
                torch.stack([torch.randn(n, self.tokens, WIDTH, generator=g) for g in self.generators]) for n in parts
            ]
            self.data = f"{s.rows:,} samples of a teacher, {WIDTH} Gaussian inputs"
        inputs, outputs = xs[0].shape[-1], len(found.classes) if s.task == "images" else WIDTH
        self.shapes = [(HIDDEN, inputs), (HIDDEN, HIDDEN), (outputs, HIDDEN)]
        if s.task == "transformer":  # two blocks (query-key-value, mixing, up, down) and a read-out
            block = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)]
            self.shapes = 2 * block + [(WIDTH, WIDTH)]
        if s.task != "images":
            teachers = self._weights(self._drawn())
            ys = [self._forward(teachers, x.flatten(1, 2)).out.view_as(x) for x in xs]
        (self.x, self.x_held), (self.y, self.y_held) = ([t.to(s.device) for t in both] for both in (xs, ys))

    def _each(self, by_seed: Shaped[Tensor, "seed *shape"]) -> Shaped[Tensor, "run *shape"]:
        """What differs by seed alone, for every run."""
        return by_seed.repeat(len(self.runs) // len(self.s.seeds), *[1] * (by_seed.dim() - 1)).to(self.s.device)

    def _drawn(self) -> Float[Tensor, "seed parameter"]:
        """Parameters as `torch.nn.Linear` draws them, uniform within ±1/√inputs."""

        def one(g: torch.Generator) -> Tensor:
            return torch.cat([(2 * torch.rand(o * (i + 1), generator=g) - 1) / i**0.5 for o, i in self.shapes])

        return torch.stack([one(g) for g in self.generators])

    def _weights(self, theta: Float[Tensor, "run parameter"]) -> list[tuple[Tensor, Tensor]]:
        """Each layer's W [run, out, in] and b [run, out]."""
        parts = theta.split([n for o, i in self.shapes for n in (o * i, o)], 1)
        return [(W.view(-1, *s), b) for W, b, s in zip(parts[::2], parts[1::2], self.shapes, strict=True)]

    def _W(self, theta: Float[Tensor, "run parameter"]) -> Float[Tensor, "run out in"]:
        """The measured layer's part."""
        return self._weights(theta)[self.layer][0]

    def _forward(self, weights: list[tuple[Tensor, Tensor]], x: Float[Tensor, "run sample in"]) -> _Pass:
        act, local, h, h_a, z, hidden = FUNCTIONS[self.s.activation], self.s.rule == "dfa", x, x, x, []
        if self.s.task == "transformer":
            for at in (0, 4):
                qkv, mix, up, down = weights[at : at + 4]
                h = h + _linear(_attention(_linear(_norm(h), *qkv)), *mix)
                h_a = _norm(h)
                z = _linear(h_a, *up)
                h = h + _linear(act(z), *down)
            return _Pass(_linear(_norm(h), *weights[-1]), hidden, h_a, z)
        for layer in weights[:-1]:
            h_a = h.detach() if local else h
            z = _linear(h_a, *layer)
            h = act(z)
            hidden.append(h)
        return _Pass(_linear(h.detach() if local else h, *weights[-1]), hidden, h_a, z)

    def _error(self, out: Tensor, y: Tensor) -> Tensor:
        """The loss's derivative by the output."""
        if self.s.task == "images":
            return (out.softmax(-1) - F.one_hot(y[..., 0], out.shape[-1])) / out.shape[1]
        return 2 * (out - y) / out[0].numel()

    def _learn(self, theta: Tensor, x: Tensor, y: Tensor, which: slice = slice(None)) -> tuple[_Pass, Tensor, Tensor]:
        """The forward pass of some runs, the rule's gradient [run, parameter], and δ [run, sample, out]."""
        theta, x, y = theta.detach().requires_grad_(), x.flatten(1, 2), y.flatten(1, 2)
        done, scale = self._forward(self._weights(theta), x), 1.0
        with torch.no_grad():
            source = done.out
            if self.s.rule == "random":
                source, scale = self._forward(self._weights(self.frozen[which]), x).out, self.s.pseudo_error_scale
            e = self._error(source, y) * scale
        objective = (done.out * e).sum()
        if self.s.rule == "dfa":
            objective = objective + sum(
                (h * (e @ B[which])).sum() for h, B in zip(done.hidden, self.feedback, strict=True)
            )
        gradient, delta = torch.autograd.grad(objective, (theta, done.z))
        return done, gradient, delta

    def _move(self, gradient: Tensor, step: int) -> Tensor:
        """The optimiser's change of the parameters, without a decay of its own."""
        if self.s.optimiser == "sgd":
            return -self.s.lr * gradient
        if self.s.optimiser == "adam":
            gradient = gradient + self.gamma * self.theta
        self.m.lerp_(gradient, 1 - BETA_1)
        self.v.lerp_(gradient.square(), 1 - BETA_2)
        scale = (self.v / (1 - BETA_2**step)).sqrt_().add_(EPSILON)
        return (self.m / scale).mul_(-self.s.lr / (1 - BETA_1**step))

    def train(self) -> list[dict[str, Any]]:
        s, rows, noise = self.s, self.x.shape[1], torch.Generator().manual_seed(self.s.seeds[0])
        owner = torch.arange(len(s.seeds))[:, None] % len(self.x)
        per_epoch = rows // self.size
        steps = per_epoch * s.epochs
        first = steps - per_epoch * min(s.window, s.epochs) + 1
        told = {round(steps ** (i / max(s.points - 1, 1))) for i in range(s.points)}
        records: list[list[dict[str, Any]]] = [[] for _ in self.runs]
        start, order = self._W(self.theta).norm(dim=(1, 2)).tolist(), owner
        for step in range(1, steps + 1):
            at = (step - 1) % per_epoch * self.size
            if at == 0:
                order = torch.stack([torch.randperm(rows, generator=g) for g in self.generators])
            x, y = (self._each(t[owner, order[:, at : at + self.size]]) for t in (self.x, self.y))
            theta = self.theta
            if max(s.sigmas) > 0:
                theta = theta + self.sigma * torch.randn(theta.shape, generator=noise).to(theta.device)
            if s.resample:
                self.frozen = self._each(self._drawn())
            done, gradient, delta = self._learn(theta, x, y)
            move = self._move(gradient, step)
            if step >= first or step in told:
                W, g, moved = (self._W(t) for t in (theta, -gradient, move))
                h_a, now = done.h_a.detach(), self._W(self.theta).norm(dim=(1, 2)).tolist()
                h_b = h_a @ W.transpose(1, 2)
                H = h_b.transpose(1, 2) @ h_a
                signs = (g * H).sum(-1) > 0
                for i, record in enumerate(records):
                    cosines = batch_cosine(g[i], H[i]), sample_cosine(-delta[i], h_b[i])
                    found = Alignment(*cosines, inner(-delta[i], h_b[i], h_a[i]) * h_a.shape[1], cosine(moved[i], H[i]))
                    record.append({**asdict(found), "step": step, "norm": now[i], "signs": signs[i]})
            self.theta = self.theta + move - (0 if s.optimiser == "adam" else s.lr * self.gamma * self.theta)
        students = []
        for i, (run, record) in enumerate(zip(self.runs, records, strict=True)):
            window = [r for r in record if r["step"] >= first]
            flips = [(a["signs"] != b["signs"]).float().mean().item() for a, b in itertools.pairwise(window)]
            means = {key: fmean(r[key] for r in window) for key in ("batch_cos", "sample_cos", "inner", "step_cos")}
            history = [[r["step"], r["batch_cos"], r["norm"]] for r in record if r["step"] in told]
            known = dict(zip(("gamma", "sigma", "seed"), run, strict=True)) | {"start_norm": start[i]}
            oscillation = fmean(flips) if flips else None
            students.append({**known, **means, "oscillation": oscillation, "history": history, **self.end(i)})
        return students

    def end(self, i: int) -> dict[str, Any]:
        """One student's final weights over all training samples, without noise, and its loss on those held out.

        With G = E[g_n]: norm ‖W‖, signal ‖G‖, spread S = E‖g_n‖² - ‖G‖², mean_cos cos(G, E[H]), which is rest_cos =
        cos(W, WΣ_a) at rest; unrest ‖G - γW‖ / (‖G‖ + γ‖W‖), 0 at rest; sized, A1 over batches of `sizes`; and an
        MLP's noise_limit, the σ at which γE‖h_b‖² = σ² tr(C) ‖Σ_a‖², C the loss's mean Gauss-Newton curvature by h_b.
        """
        one, by_seed = slice(i, i + 1), i % len(self.x)
        x, y, x_held, y_held = (t[by_seed, None] for t in (self.x, self.y, self.x_held, self.y_held))
        done, _, delta = self._learn(self.theta[one], x, y, one)
        weights, h_a, gamma, rows = (
            self._weights(self.theta[one]),
            done.h_a[0].detach(),
            self.runs[i][0],
            delta.shape[1],
        )
        W, s = weights[self.layer][0][0], -rows * delta[0]
        h_b = h_a @ W.T
        G, H, sigma_a = s.T @ h_a / rows, h_b.T @ h_a / rows, h_a.T @ h_a / rows
        norm, signal = W.norm().item(), G.norm().item()
        told: dict[str, Any] = {
            "norm": norm,
            "signal": signal,
            "mean_cos": cosine(G, H),
            "rest_cos": cosine(W, W @ sigma_a),
            "spread": ((s.square().sum(1) * h_a.square().sum(1)).mean() - G.square().sum()).item(),
            "unrest": (G - gamma * W).norm().item() / ((signal + gamma * norm) or 1.0),
        }
        g = torch.Generator().manual_seed(i)
        picks = {size: [torch.randint(rows, (size,), generator=g) for _ in range(20)] for size in self.s.sizes}
        told["sized"] = [
            [size, fmean(batch_cosine(s[p].T @ h_a[p], h_b[p].T @ h_a[p]) for p in some)]
            for size, some in picks.items()
        ]
        held, wanted = self._forward(weights, x_held.flatten(1, 2)).out[0], y_held.flatten(1, 2)[0]
        if self.s.task == "images":
            right = (held.argmax(1) == wanted[:, 0]).float().mean().item()
            return told | {"loss": F.cross_entropy(held, wanted[:, 0]).item(), "accuracy": right}
        if self.s.task == "mlp":
            z = done.z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(FUNCTIONS[self.s.activation](z).sum(), z)
            curvature = 2 / WIDTH * slope[0].square().mean(0) @ weights[-1][0][0].square().sum(0)
            limit = gamma * h_b.square().sum(1).mean() / (curvature * sigma_a.square().sum())
            told["noise_limit"] = limit.sqrt().item()
        return told | {"loss": F.mse_loss(held, wanted).item(), "target_variance": wanted.var(0).mean().item()}


def _linear(x: Tensor, W: Float[Tensor, "run out in"], b: Float[Tensor, "run out"]) -> Tensor:
    return torch.baddbmm(b[:, None], x, W.transpose(1, 2))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,))


def _attention(qkv: Float[Tensor, "run sample three_widths"]) -> Float[Tensor, "run sample width"]:
    """Each token reads all tokens of its sequence."""
    q, k, v = qkv.reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).reshape(*qkv.shape[:2], WIDTH)
