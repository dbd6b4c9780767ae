"""What is measured of a network: accuracy, clusters, and its filters. The source's speckle and HAF are not defined in
the texts that can be had; the definitions here are ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from hsae.lab.nm_hebb.backbones import Backbone, ConvNorm, watched


def high_frequency(weight: Float[Tensor, "filter channel h w"]) -> Float[Tensor, "filter"]:
    """‖w - box w‖² / ‖w‖² of each filter; the box is the mean over a weight and its (up to 8) neighbours."""
    smooth = functional.avg_pool2d(weight, 3, 1, 1, count_include_pad=False)
    return (weight - smooth).square().sum((1, 2, 3)) / weight.square().sum((1, 2, 3)).clamp_min(1e-20)


def lag_one(weight: Float[Tensor, "filter channel h w"]) -> Float[Tensor, "filter"]:
    """The correlation of each filter's weights with their right and lower neighbours; 1 where all are equal."""
    w = weight - weight.mean((1, 2, 3), keepdim=True)
    pairs = [(w[..., 1:, :], w[..., :-1, :]), (w[..., :, 1:], w[..., :, :-1])]
    product = sum((a * b).sum((1, 2, 3)) for a, b in pairs)
    squares = sum(((a.square() + b.square()) / 2).sum((1, 2, 3)) for a, b in pairs)
    return torch.where(squares > 1e-12, product / squares.clamp_min(1e-12), 1.0)  # pyright: ignore


def speckle(weight: Float[Tensor, "filter channel h w"]) -> float | None:
    """The share of filters with more than half their energy in high frequencies, or a |lag-1 correlation| below .1.

    None for kernels of a single weight, which have no neighbours.
    """
    if weight.shape[-1] == 1:
        return None
    return float(((high_frequency(weight) > 0.5) | (lag_one(weight).abs() < 0.1)).float().mean())


def selectivity(means: Float[Tensor, "class filter"]) -> Float[Tensor, "filter"]:
    """(μ_max - μ_rest) / (μ_max + μ_rest) of each filter's mean activations by class, μ_rest their mean but for one."""
    top = means.amax(0)
    rest = (means.sum(0) - top) / (len(means) - 1)
    return (top - rest) / (top + rest).clamp_min(1e-12)


def haf(activation: Float[Tensor, "filter"], weight: Float[Tensor, "filter"]) -> Float[Tensor, "filter"]:
    """The Hebbian alignment factor, 1 - |ā - w̄| / (|ā| + |w̄|): 1 where they agree, 0 where the signs differ."""
    return 1 - (activation - weight).abs() / (activation.abs() + weight.abs()).clamp_min(1e-12)


def hebbian_cosine(
    conv: ConvNorm, x: Float[Tensor, "image channel height width"], y: Float[Tensor, "image filter h w"]
) -> float:
    """The mean over filters of cos(-∂R/∂w_f, Σ y_f x): how far the Hebbian term moves weights as Hebb's rule does.

    R sees no inputs: it moves a filter's weights alike, up or down. Hebb's rule adds the sum over patches x of y_f x.
    """
    inner = conv[0]
    assert isinstance(inner, nn.Conv2d)
    sums = nn.grad.conv2d_weight(x, inner.weight.shape, y, inner.stride, inner.padding, groups=inner.groups).flatten(1)  # pyright: ignore
    towards = (y.mean((0, 2, 3)) - inner.weight.detach().mean((1, 2, 3))).sign()
    return float((towards * functional.normalize(sums).sum(1)).mean() / sums.shape[1] ** 0.5)


def nmi(z: Float[Tensor, "image feature"], labels: Int[Tensor, "image"]) -> float:
    """Normalised mutual information (arithmetic mean) of labels and k-means clusters, as many as there are classes."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    means = KMeans(len(labels.unique()), n_init=4, random_state=0)  # pyright: ignore[reportArgumentType]
    found = means.fit_predict(z.double().numpy())
    return float(normalized_mutual_info_score(labels.numpy(), found))


@torch.no_grad()
def measured(
    net: Backbone, conv: ConvNorm, x: Float[Tensor, "image channel height width"], y: Int[Tensor, "image"]
) -> tuple[dict[str, float | None], Float[Tensor, "image feature"]]:
    """What is measured on test images, and their embeddings (of length 1). The network is left in evaluation mode."""
    net.eval()
    with watched(conv) as seen:
        pooled, logits = (torch.cat(t).cpu() for t in zip(*map(net, x.split(500)), strict=True))
    active = torch.cat([activation.mean((2, 3)) for _, activation in seen]).cpu()
    y, z, weight = y.cpu(), functional.normalize(pooled), conv.weight.cpu()
    a, w = active.mean(0), weight.mean((1, 2, 3))
    return {
        "accuracy": (logits.argmax(1) == y).double().mean().item(),
        "loss": functional.cross_entropy(logits, y).item(),
        "nmi": nmi(z, y),
        "selectivity": selectivity(torch.stack([active[y == kind].mean(0) for kind in y.unique()])).mean().item(),
        "speckle": speckle(weight),
        "speckle_centred": speckle(weight - w[:, None, None, None]),
        "haf": haf(a, w).mean().item(),
        "term": (a - w).square().mean().item(),
        "activation": a.mean().item(),
        "weight": w.mean().item(),
        "hebb": hebbian_cosine(conv, *seen[0]),
    }, z
