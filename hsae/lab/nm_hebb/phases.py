"""A network through phase 1 (cross-entropy and the gated Hebbian term) and phase 2 (pairs and consolidation)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hsae.errors import UserError
from hsae.lab.images import load_images
from hsae.lab.nm_hebb.backbones import BACKBONES, Backbone, ConvNorm, hooked, watched
from hsae.lab.nm_hebb.losses import Gate, Kind, Reading, consolidation, effect, hebbian_term, pair_loss, partners
from hsae.lab.nm_hebb.measures import measured

LOOKS, POINTS = 30, 300  # points of a curve; images in the drawing of embeddings
EVERY = 4  # steps between two looks of the gate `meta` at the images set aside
Step = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]  # the loss; and CE, R or L_cons, ν


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `first` and `second` are epochs, each as many images as there are."""

    reading: Reading
    gate: Kind
    first: int
    second: int
    lambda_h: float
    lambda_c: float
    margin: float
    mu: float
    lr: float
    batch: int


@dataclass(frozen=True)
class Pupil:
    """A network in training: its hooked layer, its gate, its images, and where its chance comes from."""

    net: Backbone
    conv: ConvNorm
    gate: Gate
    x: Float[Tensor, "image channel height width"]
    y: Int[Tensor, "image"]
    chance: torch.Generator

    def shown(self, images: Int[Tensor, "batch"]) -> tuple[Tensor, Tensor]:
        """Images by number, shifted by up to an eighth of their width, colour ones mirrored by chance; their labels."""
        x, far = self.x[images.to(self.x.device)], self.x.shape[-1] // 8
        dy, dx = torch.randint(2 * far + 1, (2,), generator=self.chance).tolist()
        mirrored = torch.rand(len(images), 1, 1, 1, generator=self.chance) < (0.5 if x.shape[1] == 3 else 0)
        x = torch.where(mirrored.to(x.device), x.flip(3), x)
        x = functional.pad(x, [far] * 4)[..., dy : dy + x.shape[2], dx : dx + x.shape[3]]
        return x.contiguous(memory_format=torch.channels_last), self.y[images].to(x.device)

    def batches(self, images: Int[Tensor, "some"], epochs: int, size: int) -> list[Tensor]:
        """Whole batches of these images, in another order each epoch."""
        whole = max(1, len(images) // size)
        orders = [images[torch.randperm(len(images), generator=self.chance)] for _ in range(epochs)]
        return [batch for order in orders for batch in order.split(size)[:whole]]

    def first(self, recipe: Recipe, batches: list[Tensor], held: Int[Tensor, "held"]) -> Iterator[Step]:
        """The steps of phase 1, each computed when it is asked for."""
        with watched(self.conv) as seen:
            for step, batch in enumerate(batches):
                x, y = self.shown(batch)
                ce = functional.cross_entropy(self.net(x)[1], y)
                term = hebbian_term(seen.pop()[1], self.conv.weight, recipe.reading)
                nu, known = self.gate(ce), 0.0
                if self.gate.kind == "meta" and step % EVERY == 0:
                    x, y = self.shown(held[torch.randint(len(held), (len(batch),), generator=self.chance)])
                    aside = functional.cross_entropy(self.net(x)[1], y)
                    known = effect(recipe.lambda_h * term, aside, list(self.net.layers.parameters()))
                    seen.clear()
                gated = self.gate.gated(nu, recipe.lambda_h * term, known) if recipe.reading != "none" else 0.0
                yield ce + gated, (ce, term, nu)

    def second(self, recipe: Recipe, batches: list[Tensor]) -> Iterator[Step]:
        """The steps of phase 2. The second half of a batch gives way to the partners of its first."""
        parameters = list(self.net.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        for batch in batches:
            anchors = batch[: (len(batch) + 1) // 2]
            others, same = partners(anchors, self.y, self.chance)
            x, y = self.shown(torch.cat([anchors, others]))
            pooled, logits = self.net(x)
            z, other = functional.normalize(pooled).chunk(2)
            ce, moved = functional.cross_entropy(logits, y), consolidation(parameters, before)
            pairs = pair_loss(z, other, same.to(z.device), recipe.margin)
            nu = self.gate(ce)
            yield pairs + recipe.mu * ce + self.gate.gated(nu, recipe.lambda_c * moved), (ce, moved, nu)

    def learn(self, steps: Iterator[Step], count: int, lr: float) -> list[list[float]]:
        """Take the steps at a rate that falls to 0 along a cosine; at most `LOOKS` means of (CE, R or L_cons, ν).

        Raises:
            UserError: the loss became infinite.
        """
        self.net.train()
        descent = torch.optim.SGD(self.net.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        tuning = torch.optim.Adam(self.gate.parameters(), 1e-2)
        rows = []
        for step, (loss, row) in enumerate(steps):
            descent.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / count)) / 2
            descent.zero_grad()
            tuning.zero_grad()
            loss.backward()
            descent.step()
            tuning.step()
            rows.append(torch.stack([value.detach() for value in row]))
        found = torch.stack(rows)
        if not found.isfinite().all():
            raise UserError("a training diverged: smaller --lambda-h, --lambda-c or --lr are wanted")
        looks = [part.mean(0).tolist() for part in found.tensor_split(min(LOOKS, len(rows)))]
        return [[float(f"{value:.4g}") for value in look] for look in looks]


def train(
    images: str, count: int, backbone: str, layer: str, seed: int, device: str, recipe: dict[str, Any], keep: bool,
    sources: str,
) -> dict[str, Any]:  # fmt: skip
    """Train one network, on one thread: what is measured after each phase, and how CE, penalty and ν went.

    Args:
        images: for `load_images`.
        count: training images to take, the same for every seed; 0: all.
        backbone: of `BACKBONES`.
        layer: the hooked one.
        seed: of the weights, of the gate, of the order and shifts of the images.
        device: where to compute.
        recipe: a `Recipe`.
        keep: whether to return the embeddings in the plane.
        sources: fingerprint of the images, and of the code that this calls.
    """
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(images, count, backbone, layer, seed, torch.device(device), Recipe(**recipe), keep)
    finally:
        torch.set_num_threads(threads)


def _train(
    images: str, count: int, backbone: str, layer: str, seed: int, device: torch.device, recipe: Recipe, keep: bool
) -> dict[str, Any]:
    data = load_images(images)
    take = torch.linspace(0, len(data.y_train) - 1, count or len(data.y_train)).long()
    net = BACKBONES[backbone](data.x_train.shape[1], len(data.classes))
    gate = Gate(recipe.gate, len(data.classes)).to(device)
    net = net.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    conv = hooked(net, backbone, layer)
    x, y = data.x_train[take].to(device), data.y_train[take]
    pupil = Pupil(net, conv, gate, x, y, torch.Generator().manual_seed(seed))
    test = data.x_test.to(device, memory_format=torch.channels_last), data.y_test
    found: dict[str, Any] = {"curves": [], "parameters": sum(p.numel() for p in net.parameters())}
    started = _kernels(conv)
    every = torch.arange(len(y))
    aside = every % 10 == 0 if recipe.gate == "meta" else every < 0
    batches = pupil.batches(every[~aside], recipe.first, recipe.batch)
    found["curves"].append(pupil.learn(pupil.first(recipe, batches, every[aside]), len(batches), recipe.lr))
    found["first"], z = measured(net, conv, *test)
    if recipe.second:
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        batches = pupil.batches(every, recipe.second, recipe.batch)
        found["curves"].append(pupil.learn(pupil.second(recipe, batches), len(batches), recipe.lr))
        found["second"], z = measured(net, conv, *test)
        after = torch.cat([p.detach().flatten() for p in net.parameters()])
        found["moved"] = float((after - before).norm() / before.norm())
    found["kernels"] = [started, _kernels(conv)]
    return found | ({"points": _points(z, data.y_test)} if keep else {})


def _kernels(conv: ConvNorm) -> list[Any]:
    return [[[round(v, 4) for v in row] for row in k] for k in conv.weight.detach().cpu()[:16, 0].tolist()]


def _points(z: Float[Tensor, "image feature"], labels: Int[Tensor, "image"]) -> list[list[float]]:
    """Some embeddings in the plane, by t-SNE, each with its class."""
    from sklearn.manifold import TSNE

    some = torch.linspace(0, len(z) - 1, min(POINTS, len(z) // 4)).long()
    plane = TSNE(perplexity=min(30, len(some) // 4), init="pca", random_state=0).fit_transform(z[some].double().numpy())
    return [[round(float(a), 1), round(float(b), 1), float(c)] for (a, b), c in zip(plane, labels[some], strict=True)]
