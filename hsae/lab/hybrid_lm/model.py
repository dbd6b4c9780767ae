"""The source's language model: a pre-LN GPT with an output layer of its own, 64.21 M parameters at its size."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

STD = 0.02  # of all initial weights


@dataclass(frozen=True)
class Size:
    """How large a model is. `mlp` is a GPT's hidden width; in BDH the number of neurons, over all heads."""

    vocabulary: int
    width: int
    heads: int
    mlp: int
    layers: int
    context: int
    dropout: float


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.q, self.k, self.v, self.o = (nn.Linear(size.width, size.width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(size.width, size.mlp), nn.Linear(size.mlp, size.width)

    def forward(self, x: Float[Tensor, "row position width"]) -> Float[Tensor, "row position width"]:
        drop = self.dropout if self.training else 0.0
        normed = self.before_attention(x)
        q, k, v = (f(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
        x = x + F.dropout(self.o(mixed.transpose(1, 2).flatten(2)), drop)
        return x + F.dropout(self.fc2(F.dropout(F.gelu(self.fc1(self.before_mlp(x))), drop)), drop)


class GPT(nn.Module):
    """Logits of the next token at every position."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.token, self.position = nn.Embedding(size.vocabulary, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Int[Tensor, "row position"]) -> Float[Tensor, "row position vocabulary"]:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        x = F.dropout(x, self.size.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def plastic(self, layers: str = "all") -> dict[str, nn.Linear]:
        """The linear layers that local rules may change: `all`, or those of the `attention`."""
        names = ("q", "k", "v", "o") + (("fc1", "fc2") if layers == "all" else ())
        return {f"{i}.{name}": getattr(block, name) for i, block in enumerate(self.blocks) for name in names}
