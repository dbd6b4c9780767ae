"""Networks for small images: a small one, and ResNet-18 and MobileNetV2 with the strides usual for CIFAR-10.

Every convolution in them is a `ConvNorm`, and can be the hooked layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae.errors import UserError, choices


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm, and ReLU, which is cut off at `cap`; where `linear`, without ReLU."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, stride: int = 1, *, groups: int = 1, cap: float = torch.inf,
        linear: bool = False,
    ) -> None:  # fmt: skip
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs))
        self.cap, self.linear = cap, linear

    @property
    def weight(self) -> Float[Tensor, "filter channel height width"]:
        """The kernels; a filter sees the channels of its own group."""
        return self[0].weight  # pyright: ignore[reportReturnType]

    def forward(self, input: Tensor) -> Tensor:
        """[image channel height width] to the same with the layer's filters as channels."""
        y = super().forward(input)
        return y if self.linear else self.activate(y)

    def activate(self, y: Tensor) -> Tensor:
        """The ReLU of what batch norm gave."""
        return torch.relu(y) if self.cap == torch.inf else y.clamp(0, self.cap)


class Basic(nn.Module):
    """ResNet's block: two convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, linear=True)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """[image channel height width] to the block's outputs."""
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's block: widen, convolve each channel by itself, narrow without ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvNorm(inputs, wide, 1, cap=6.0)
        self.depthwise = ConvNorm(wide, wide, 3, stride, groups=wide, cap=6.0)
        self.project = ConvNorm(wide, outputs, 1, linear=True)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[image channel height width] to the block's outputs."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.same else y


class Backbone(nn.Module):
    """Layers, the mean over the image, a linear classifier."""

    def __init__(self, layers: dict[str, nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.head = nn.Linear(width, classes)

    def forward(
        self, x: Float[Tensor, "image channel height width"]
    ) -> tuple[Float[Tensor, "image feature"], Float[Tensor, "image class"]]:
        """The features' means over the image, and the logits."""
        for layer in self.layers.values():
            x = layer(x)
        pooled = x.mean((2, 3))
        return pooled, self.head(pooled)


def small(channels: int, classes: int) -> Backbone:
    """Three convolutions of 16, 32 and 64 filters, with a pooling between each two."""
    layers = {"conv1": ConvNorm(channels, 16), "pool1": nn.MaxPool2d(2), "conv2": ConvNorm(16, 32)}
    return Backbone(layers | {"pool2": nn.MaxPool2d(2), "conv3": ConvNorm(32, 64)}, 64, classes)


def resnet18(channels: int, classes: int) -> Backbone:
    """ResNet-18 (He et al., 2016) with a 3 x 3 stem of stride 1 and no pooling."""
    layers: dict[str, nn.Module] = {"stem": ConvNorm(channels, 64)}
    for stage, (inputs, outputs) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), start=1):
        layers[f"layer{stage}"] = nn.Sequential(Basic(inputs, outputs, min(stage, 2)), Basic(outputs, outputs, 1))
    return Backbone(layers, 512, classes)


def mobilenetv2(channels: int, classes: int) -> Backbone:
    """MobileNetV2 (Sandler et al., 2018) with stride 1 in its stem and in its second stage."""
    layers: dict[str, nn.Module] = {"stem": ConvNorm(channels, 32, cap=6.0)}
    inputs, stages = 32, ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
    for expansion, outputs, count, stride in (*stages, (6, 320, 1, 1)):
        for i in range(count):
            layers[f"block{len(layers)}"] = Inverted(inputs, outputs, 1 if i else stride, expansion)
            inputs = outputs
    return Backbone(layers | {"last": ConvNorm(inputs, 1280, 1, cap=6.0)}, 1280, classes)


BACKBONES = {"small": small, "resnet18": resnet18, "mobilenetv2": mobilenetv2}
HOOKED = {"small": "conv2", "resnet18": "layer2.0.conv1", "mobilenetv2": "block17.depthwise"}
"""the layer that the Hebbian term is of, unless another is named"""


def hooked(net: Backbone, backbone: str, layer: str = "") -> ConvNorm:
    """The convolution of a name, such as `layer2.0.conv1`; empty: the backbone's in `HOOKED`.

    Raises:
        UserError: there is no such layer, or it is no convolution.
    """
    modules, layer = dict(net.layers.named_modules()), layer or HOOKED[backbone]
    if isinstance(found := modules.get(layer), ConvNorm):
        return found
    wrong = "is no convolution there" if found is not None else "is not there"
    there = choices(layer, [name for name, module in modules.items() if isinstance(module, ConvNorm)])
    raise UserError(f"layer {layer!r} of {backbone}: {wrong}; {there}")


@contextlib.contextmanager
def watched(conv: ConvNorm) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that gets a layer's input and activation at every forward pass.

    The activation is the ReLU of the layer's own batch norm, also where the backbone adds a shortcut before its ReLU
    (the second convolution of ResNet's block) or has none (MobileNetV2's narrowing).
    """
    seen: list[tuple[Tensor, Tensor]] = []
    handle = conv.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], conv.activate(output))))
    try:
        yield seen
    finally:
        handle.remove()
