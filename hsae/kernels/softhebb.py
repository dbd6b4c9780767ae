"""SoftHebb's sums over tokens. `Competition.of` defines them; `csrc/softhebb.c` computes them on the CPU.

With u = W x + b and y = softmax(temperature·u), s is y, or with the sign +1 for the winner and -1 for all others. The
sum over tokens of s (x - u w), which the rule needs, is sᵀx - (w · sᵀx + b Σs) w: nothing of [token, latent] is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.across import HERE, Peers
from hsae.kernels.native import call, load, packed_rows

# Numbers of [token, latent] that are kept at a time, so that they stay in the processor's last cache; but at least as
# many tokens as make what is done once for all of them small beside the rest.
CELLS, TOKENS = 1 << 21, 256


@dataclass(frozen=True)
class Competition:
    """Sums over tokens of a soft competition.

    Attributes:
        sx: Σ s x, [latent, width].
        s: Σ s, [latent].
        y: Σ y, [latent].
        fired: how often each drive was above 0, [latent].
        total: the sum of all drives above 0.
    """

    sx: Float[Tensor, "latent width"]
    s: Float[Tensor, "latent"]
    y: Float[Tensor, "latent"]
    fired: Float[Tensor, "latent"]
    total: Float[Tensor, ""]

    @classmethod
    def of(
        cls,
        u: Float[Tensor, "token latent"],
        x: Float[Tensor, "token width"],
        temperature: float,
        signed: bool,
        peers: Peers = HERE,
    ) -> Competition:
        """The reference, from the drive; the sums of this rank's latents."""
        s, ones = competition(u, temperature, signed, peers), u.new_ones(1, len(u))
        total, size, fired = ((ones @ values).squeeze(0) for values in (s, s.abs(), (u > 0).to(u.dtype)))
        return cls(s.T @ x, total, size, fired, torch.relu(u).sum())


def competition(
    u: Float[Tensor, "token latent"], temperature: float, signed: bool, peers: Peers = HERE
) -> Float[Tensor, "token latent"]:
    """The post-synaptic signal s. Ties go to the first latent."""
    s = peers.softmax(temperature * u)
    if signed:
        value, winner = peers.winner(u)
        won = s.gather(1, winner)
        s.neg_().scatter_(1, winner, torch.where(value > -torch.inf, won, -won))
    return s


def competes(device: torch.device, peers: Peers = HERE) -> bool:
    """Whether `compete` gives sums on a device. The compiled code knows of no latents elsewhere."""
    return device.type == "cpu" and not peers.several and load("softhebb") is not None


def compete(
    x: Float[Tensor, "token width"],
    W: Float[Tensor, "latent width"],
    b: Float[Tensor, "latent"],
    temperature: float,
    signed: bool,
    drive: Float[Tensor, "token latent"] | None = None,
    peers: Peers = HERE,
) -> Competition | None:
    """The sums, without the drive as a matrix unless it is asked for; None where nothing computes them so.

    Args:
        x: activations.
        W: the encoder's rows.
        b: its bias.
        temperature: inverse temperature of the softmax.
        signed: losers count with the opposite sign.
        drive: filled with the drive, where given.
        peers: who holds other latents.
    """
    if x.dtype != torch.float32 or not competes(x.device, peers):
        return None
    packed, bias = packed_rows("softhebb", W, b)
    (latents, width), threads = W.shape, torch.get_num_threads()
    block = max(TOKENS, CELLS // latents)
    work = x.new_empty(call("softhebb", "work_size", min(block, len(x)), width, latents))
    sx = x.new_zeros(call("softhebb", "sums_size", width, latents))
    (s, y, fired), total = x.new_zeros(3, latents).unbind(), x.new_empty(len(x))
    drives = [None] * -(-len(x) // block) if drive is None else drive.split(block)
    for rows, totals, out in zip(x.split(block), total.split(block), drives, strict=True):
        where = (packed, bias, len(rows), width, latents)
        result = (out, work, sx, s, y, fired, totals)
        call("softhebb", "softhebb", rows.contiguous(), *where, float(temperature), int(signed), *result, threads)
    # Latents lie side by side in panels, dimension by dimension, with some beyond the last of both.
    panels, wide = len(bias) // (panel := call("softhebb", "panel")), len(sx) // len(bias)
    sx = sx.view(panels, wide, panel).transpose(1, 2).reshape(-1, wide)[:latents, :width].contiguous()
    return Competition(sx, s, y, fired, total.sum())
