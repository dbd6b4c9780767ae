"""BDH, the "Baby Dragon Hatchling" (Kosowski et al., 2025, arXiv 2509.26507), whose attention is a Hebbian memory.

All layers share one set of weights: encoder E, value encoder E_v and decoder D. With Q = K = RoPE(x_s) and V = x,

    x_s = ReLU(x E)    a = tril(Q Qᵀ, -1) V    y_s = ReLU(LN(a) E_v)    x ← LN(x + LN((x_s ⊙ y_s) D))

There is no softmax, so the same a comes from a synaptic state that each token reads before it writes Hebb's product,

    a_t = q_tᵀ σ_{t-1}        σ_t = σ_{t-1} + q_t v_tᵀ

which is `recurrent` below. RoPE turns pairs of neurons by the position, so that synapses know of the distance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hsae.lab.hybrid_lm.model import STD, Size

THETA = 2.0**16  # RoPE's slowest pair of neurons turns about this much slower than its fastest
Codes = Float[Tensor, "row head position neuron"]
Values = Float[Tensor, "row head position width"]


def rope(codes: Codes) -> Codes:
    """Neurons 2i and 2i + 1 as a plane, turned by position · THETA^(-2i / neurons)."""
    positions, neurons = codes.shape[-2:]
    pairs = torch.arange(0, neurons, 2, dtype=codes.dtype, device=codes.device)
    angle = torch.arange(positions, dtype=codes.dtype, device=codes.device)[:, None] * THETA ** (-pairs / neurons)
    a, b = codes.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
    return torch.stack(turned, -1).flatten(-2)


def parallel(q: Codes, v: Values) -> Values:
    """tril(q qᵀ, -1) v, all positions at once."""
    return (q @ q.mT).tril(-1) @ v


def recurrent(q: Codes, v: Values) -> Values:
    """The same, one position after the other, by a synaptic state σ [row head neuron width]."""
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    read = []
    for t in range(q.shape[2]):
        read.append((q[:, :, t, None] @ state).squeeze(2))
        state = state + q[:, :, t, :, None] * v[:, :, t, None, :]
    return torch.stack(read, 2)


class BDH(nn.Module):
    """Logits of the next token at every position; `attend` computes a: `parallel`, or `recurrent` which is the same.

    Attributes:
        active: after a forward pass, the shares of x_s and of y_s that are not 0, over all layers.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, self.attend = size, parallel
        self.token = nn.Embedding(size.vocabulary, size.width)
        self.encoder = nn.Linear(size.width, size.mlp, bias=False)
        self.values = nn.Parameter(torch.empty(size.heads, size.width, size.mlp // size.heads))
        self.decoder = nn.Linear(size.mlp, size.width, bias=False)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.active = torch.zeros(2)
        for weight in self.parameters():
            nn.init.normal_(weight, std=STD)

    def forward(self, ids: Int[Tensor, "row position"]) -> Float[Tensor, "row position vocabulary"]:
        drop, fired = self.size.dropout if self.training else 0.0, []
        x = self._norm(self.token(ids))
        for _ in range(self.size.layers):
            xs = F.relu(self.encoder(x)).unflatten(-1, (self.size.heads, -1)).transpose(1, 2)
            a = self.attend(rope(xs), x[:, None].expand(-1, self.size.heads, -1, -1))
            ys = F.relu(self._norm(a) @ self.values)
            fired.append(torch.stack([(code.detach() > 0).float().mean() for code in (xs, ys)]))
            z = F.dropout(xs * ys, drop).transpose(1, 2).flatten(2)
            x = self._norm(x + self._norm(self.decoder(z)))
        self.active = torch.stack(fired).mean(0)
        return self.head(x)

    def plastic(self, layers: str = "all") -> dict[str, nn.Linear]:
        """The linear layers that local rules may change: `all`, or that which makes the `attention`'s keys."""
        return {"encoder": self.encoder} | ({"decoder": self.decoder} if layers == "all" else {})

    def _norm(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return F.layer_norm(x, x.shape[-1:])
