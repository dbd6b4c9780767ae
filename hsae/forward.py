"""One micro-batch through one SAE: code, error, loss, and the loss's gradients, written out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.kernels.softhebb import Competition, compete
from hsae.kernels.sparse import Code
from hsae.rules import State, Synapse, Usage, Weights
from hsae.rules._post import over_tokens
from hsae.sae import Variant
from hsae.sae.relu import ReLU

# Latents whose drives, of a micro-batch's tokens, stay in the processor's cache.
TILE = 512


@dataclass(frozen=True)
class Auxiliary:
    """The loss for dead latents: which of those here they are, how many of all a token may use, and its weight."""

    dead: Int[Tensor, "some"]
    k: int
    weight: float


class Forward:
    """One micro-batch through one SAE. Everything is computed once, when first asked for.

    Plain PyTorch on [token, latent] matrices; `SparseForward` computes the same from the active latents alone.

    The loss, summed over tokens: ‖x̂ - x‖² / width + the variant's penalty (and its proxy's error, and the dead
    latents' loss, where there are such). So its mean over tokens is the mean squared error over tokens and dimensions,
    plus those. Where the variant has prefixes, the first term is the mean over them.

    Where other ranks hold latents too, errors and loss are the whole dictionary's; codes, usage and the gradients for
    what belongs to a latent are those of the latents here.

    Args:
        x: activations, centred.
        weights: `encoder` and, unless tied, `decoder`.
        variant: the SAE's variant.
        auxiliary: the dead latents' loss, if they have one.

    Attributes:
        sparse: the code as its active entries, where it was computed so.
    """

    sparse: Code | None = None

    def __init__(
        self,
        x: Float[Tensor, "token width"],
        weights: Mapping[str, Weights],
        variant: Variant,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        self.x, self.variant, self.auxiliary = x, variant, auxiliary
        self.encoder, self.peers = weights["encoder"], weights["encoder"].peers
        self.tied = "decoder" not in weights
        self.decoder = weights["encoder" if self.tied else "decoder"]
        self.b_dec = None if self.tied else self.decoder.b
        self.width = x.shape[1]
        self._competitions: dict[tuple[float, bool], Competition] = {}
        latents = len(self.encoder.W)
        ends, first = variant.prefixes(self.peers.whole(latents)), self.peers.first
        here = [min(max(end - first, 0), latents) for end in ends]
        self._parts = [slice(a, b) for a, b in zip((0, *here), here, strict=False)]

    @cached_property
    def u(self) -> Float[Tensor, "token latent"]:
        """The drive."""
        assert self.encoder.b is not None
        return (self.x @ self.encoder.W.T).add_(self.encoder.b)

    @cached_property
    def code(self) -> Float[Tensor, "token latent"]:
        """The latents' activations."""
        return self.variant.activate(self.u, self.encoder.extra, self.peers)

    @cached_property
    def usage(self) -> Usage:
        """How often and how strongly the latents fired."""
        if self._counted:
            won = next(iter(self._competitions.values()))
            return Usage(won.fired, won.total, lambda: Usage.of(self.code).squares())
        return Usage.of(self.code)

    @property
    def _counted(self) -> bool:
        """SoftHebb's kernel counts the drives above 0 by the way, and ReLU's code, not made yet, has nothing else."""
        return bool(self._competitions) and "code" not in self.__dict__ and isinstance(self.variant, ReLU)

    def competition(self, temperature: float, signed: bool) -> Competition:
        """SoftHebb's sums over these tokens, by the encoder's drive."""
        done = self._competitions.get((temperature, signed))
        if done is None:
            assert self.encoder.b is not None
            known, drive = "u" in self.__dict__, None
            if not known and not self.tied:
                # A decoder's rule will ask for the drive.
                drive = self.x.new_empty(len(self.x), len(self.encoder.W))
            done = compete(self.x, self.encoder.W, self.encoder.b, temperature, signed, drive, self.peers)
            if done is None:
                done = Competition.of(self.u, self.x, temperature, signed, self.peers)
            elif drive is not None:
                self.__dict__["u"] = drive
            self._competitions[temperature, signed] = done
        return done

    @cached_property
    def _errors(self) -> list[Float[Tensor, "token width"]]:
        """Reconstruction minus input, of each prefix of the dictionary."""
        if self._counted and self.tied and "u" not in self.__dict__ and not self.peers.several:
            return [self._error_by_tiles()]
        wanted, errors = self.x if self.b_dec is None else self.x - self.b_dec, []
        for part in self._parts:
            done = self.peers.addmm(wanted, self.code[:, part], self.decoder.W[part], beta=1 if errors else -1)
            errors.append(done)
            wanted = done
        return errors

    def _error_by_tiles(self) -> Float[Tensor, "token width"]:
        """Reconstruction minus input by a tied ReLU's code, made in tiles that stay in the processor's cache."""
        error, b = -self.x, self.encoder.b
        assert b is not None
        for rows, bias in zip(self.encoder.W.split(TILE), b.split(TILE), strict=True):
            error.addmm_(torch.addmm(bias, self.x, rows.T).relu_(), rows)
        return error

    @property
    def error(self) -> Float[Tensor, "token width"]:
        """Reconstruction minus input."""
        return self._errors[-1]

    @cached_property
    def beside(self) -> Float[Tensor, ""]:
        """What the loss has beside ‖x̂ - x‖² / width, summed over tokens."""
        rest = self.peers.sum(self._penalty())
        if len(self._errors) > 1:
            squares = torch.stack([error.square().sum() for error in self._errors])
            rest = rest + (squares.mean() - squares[-1]) / self.width
        for loss in (self._proxy, self._revived):
            if loss is not None:
                rest = rest + loss.weight * loss.error.square().sum() / self.width
        return rest

    def _penalty(self) -> Float[Tensor, ""]:
        """The variant's penalty on the latents that are here."""
        if self._counted and isinstance(self.variant, ReLU):
            return self.variant.l1 * self.usage.total / self.width
        return self.variant.penalty(self.u, self.code, self.width)

    @cached_property
    def _proxy(self) -> _Side | None:
        """The error of the variant's second code."""
        if not self.variant.proxied:
            return None
        code = self.variant.proxy(self.u)
        wanted = self.x if self.b_dec is None else self.x - self.b_dec
        return _Side(code, self.peers.addmm(wanted, code, self.decoder.W, beta=-1), 1.0)

    @cached_property
    def _revived(self) -> _Side | None:
        """How far the dead latents' reconstruction is from the error that the live ones leave."""
        aux = self.auxiliary
        if aux is None:
            return None
        u = self._drive_of(aux.dead)
        value, latent = self.peers.top(u, aux.k)
        code = torch.zeros_like(u).scatter_(1, latent, torch.relu(value))
        # The error is reconstruction minus input: what is left to explain is its negative.
        return _Side(code, self.peers.addmm(self.error, code, self.decoder.W[aux.dead]), aux.weight)

    def _drive_of(self, latents: Int[Tensor, "some"]) -> Float[Tensor, "token some"]:
        return self.u[:, latents]

    @cached_property
    def _through_decoder(self) -> list[Float[Tensor, "token width"]]:
        """The loss's gradient for each part's share of the reconstruction: a part is in its prefix and all longer."""
        share, sums = 2 / (self.width * len(self._errors)), []
        for error in reversed(self._errors):
            sums.append(error * share if not sums else torch.add(sums[-1], error, alpha=share))
        return sums[::-1]

    @cached_property
    def _through_code(self) -> tuple[Float[Tensor, "token latent"], dict[str, Tensor]]:
        pairs = zip(self._through_decoder, self._parts, strict=True)
        pieces = [signal @ self.decoder.W[part].T for signal, part in pairs]
        gradient = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        proxy = self._proxy
        of_proxy = None if proxy is None else proxy.signal(self.width) @ self.decoder.W.T
        return self.variant.backward(self.u, self.code, gradient, self.width, self.encoder.extra, of_proxy)

    def _decoder_sums(self) -> Float[Tensor, "latent width"]:
        """The decoder's gradient, without the dead latents' loss."""
        pairs = zip(self._through_decoder, self._parts, strict=True)
        pieces = [self.code[:, part].T @ signal for signal, part in pairs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _encoder_sums(self) -> Weights:
        """The encoder's gradient by its own product, without the dead latents' loss."""
        through, extra = self._through_code
        return Weights(through.T @ self.x, over_tokens(through), extra)

    def _decoder_gradient(self) -> Weights:
        W = self._decoder_sums()
        if self._revived is not None and self.auxiliary is not None:
            W.index_add_(0, self.auxiliary.dead, self._revived.code.T @ self._revived.signal(self.width))
        return Weights(W, None if self.b_dec is None else over_tokens(self._through_decoder[0]))

    def _encoder_gradient(self) -> Weights:
        sums = self._encoder_sums()
        assert sums.b is not None
        if self._revived is not None and self.auxiliary is not None:
            dead = self.auxiliary.dead
            back = self._revived.signal(self.width) @ self.decoder.W[dead].T
            back = torch.ops.aten.threshold_backward(back, self._revived.code, 0)
            sums.W.index_add_(0, dead, back.T @ self.x)
            sums.b.index_add_(0, dead, over_tokens(back))
        if self.tied:
            sums.W.add_(self._decoder_gradient().W)
        return sums

    @cached_property
    def _residual(self) -> Float[Tensor, "token width"]:
        return -self.error

    @cached_property
    def _explained(self) -> Float[Tensor, "latent width"]:
        return self.code.T @ self._residual

    def synapse(self, name: str, state: State | None = None) -> Synapse:
        """The synapse `encoder` or `decoder`, as a rule with that state sees it."""
        encoder = name == "encoder"
        return Synapse(
            x=self.x,
            drive=lambda: self.u,
            code=lambda: self.code,
            weights=self.encoder if encoder else self.decoder,
            gradient=self._encoder_gradient if encoder else self._decoder_gradient,
            residual=lambda: self._residual,
            explained=lambda: self._explained,
            usage=lambda: self.usage,
            competition=self.competition,
            dictionary=self.decoder.W,
            state={} if state is None else state,
            sparse=self.sparse,
        )


@dataclass(frozen=True)
class _Side:
    """A side term of the loss: weight · ‖error‖² / width, with an error that a code of its own makes."""

    code: Float[Tensor, "token some"]
    error: Float[Tensor, "token width"]
    weight: float

    def signal(self, width: int) -> Float[Tensor, "token width"]:
        """The term's gradient for the code's reconstruction."""
        return self.error * (2 * self.weight / width)
