"""The language model behind a hook: computed only as far as needed, or with one activation replaced."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError, choices
from hsae.tapping import FastTap, read_parts

# How far the fast tap may be from the bridge: the norm of the difference over the norm, for each hook point.
TOLERANCE = 1e-4


class _AllSeen(BaseException):
    """Every hook point has fired: stop the forward pass. No `Exception`, so that no library takes it for a failure."""


@dataclass(frozen=True)
class LM:
    """A language model, its tokeniser and what identifies them.

    Attributes:
        bridge: the `TransformerBridge`.
        tokenizer: the transformers tokeniser.
        name: what the user called the model.
        device: where it runs.
        revision: its commit on the hub; empty for a local one.
    """

    bridge: Any
    tokenizer: Any
    name: str
    device: str
    revision: str = ""

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return int(self.bridge.cfg.d_vocab)

    @property
    def context_limit(self) -> int:
        """The longest sequence that the model takes."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of eos, bos, padding and every other special token, ascending."""
        return tuple(sorted(set(self.tokenizer.all_special_ids)))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any weight: sha256 over the names, types, shapes and bytes of the parameters."""
        digest = hashlib.sha256()
        # The bridge wraps the model's modules; under their own names the fingerprint does not depend on it.
        named = {n.replace("._original_component", ""): p for n, p in self.bridge.original_model.named_parameters()}
        for name, parameter in sorted(named.items()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Changes with any rule or entry of the tokeniser."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def widths(self, hooks: Sequence[str]) -> dict[str, int]:
        """The width of each hook point's activations.

        Raises:
            UserError: no such hook point, one that does not fire, or one without a row for each position.
        """
        # Two lengths tell a position axis from heads or widths that happen to be as long.
        shapes = [self._capture(torch.zeros(2, n, dtype=torch.long, device=self.device), hooks) for n in (3, 5)]
        for hook in hooks:
            three, five = (shape[hook] for shape in shapes)
            if not (three.is_floating_point() and three.shape == (2, 3, *five.shape[2:]) and five.shape[:2] == (2, 5)):
                raise UserError(
                    f"{hook}: gives {list(five.shape)} for 2 sequences of 5 tokens, "
                    "not one vector for each position, so it cannot be harvested"
                )
        return {hook: values[0, 0].numel() for hook, values in shapes[0].items()}

    def tap(
        self, tokens: Int[Tensor, "sequence position"], hooks: Sequence[str]
    ) -> dict[str, Float[Tensor, "sequence position width"]]:
        """Activations at hook points. Nothing above the last of them is computed.

        This is the one seam through which activations come. Those of heads, [sequence, position, head, d_head], come
        flattened to [sequence, position, head * d_head]. TransformerLens' bridge computes them, or, after `trust_fast`,
        a faster implementation.

        Args:
            tokens: token ids, on any device. Attention runs over whole rows; padding belongs on the right.
            hooks: TransformerLens names, such as `blocks.4.hook_resid_pre`.

        Raises:
            UserError: no such hook point, or one that does not fire.
        """
        tokens = tokens.to(self.device)
        if self.trusts_fast(hooks) and tokens.shape[1] <= self.context_limit:
            assert self._fast is not None
            return self._fast.tap(tokens, hooks)
        seen = self._capture(tokens, hooks)
        return {hook: seen[hook].flatten(2) for hook in hooks}

    def trust_fast(self, tokens: Int[Tensor, "sequence position"], hooks: Sequence[str]) -> str:
        """Hold the fast implementation of `tap` against TransformerLens' bridge; from then on use it if they agree.

        Where there is none for this model or these hook points, the bridge computes, and there is nothing to say.

        Args:
            tokens: a batch of what will be asked for.
            hooks: the hook points that it will be asked for.

        Returns:
            one line if it differs and is given up; else nothing.

        Raises:
            UserError: as `tap`.
        """
        self._trusted.clear()
        if self._fast is None or not self._fast.knows(hooks):
            return ""
        right, fast = self.tap(tokens, hooks), self._fast.tap(tokens.to(self.device), hooks)
        for hook in hooks:
            # Where the model itself gives numbers that are none, there is nothing to compare.
            rows = right[hook].isfinite().all(-1)
            difference, norm = (fast[hook] - right[hook])[rows].norm(), right[hook][rows].norm()
            error = (difference / norm.clamp_min(1e-30)).item()
            if not error <= TOLERANCE:
                return f"{hook}: the fast computation differs from TransformerLens' by {error:.1e}; it is not used"
        self._trusted.update(hooks)
        return ""

    def trusts_fast(self, hooks: Sequence[str]) -> bool:
        """Whether `tap` computes these hook points by the fast implementation."""
        return bool(hooks) and self._trusted.issuperset(hooks)

    def way(self, hooks: Sequence[str]) -> dict[str, Any]:
        """How `tap` computes these hook points: what the last digits of a result may depend on.

        `tap` is "fast" or "bridge", `kernels` the C kernels' vectors. The number of threads is in it only where PyTorch
        computes products.
        """
        fast = self._fast if self.trusts_fast(hooks) else None
        found: dict[str, Any] = {"tap": "bridge" if fast is None else "fast", "torch": torch.__version__}
        if fast is not None and fast.lanes:
            return found | {"kernels": f"C, {fast.lanes} lanes"}
        threads = {"threads": torch.get_num_threads()} if torch.device(self.device).type == "cpu" else {}
        return found | {"kernels": "PyTorch"} | threads

    @cached_property
    def _fast(self) -> FastTap | None:
        parts = read_parts(self.bridge)
        return None if parts is None else FastTap(parts)

    @cached_property
    def _trusted(self) -> set[str]:
        """Hook points at which the fast implementation has been held against the bridge."""
        return set()

    def logits(
        self,
        tokens: Int[Tensor, "sequence position"],
        hook: str = "",
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "sequence position entry"]:
        """What the model predicts after each position, with the activation at one hook point replaced on the way.

        Args:
            tokens: token ids, on any device.
            hook: where to replace; empty: nowhere, the model's own prediction.
            edit: takes the activation there as `tap` gives it and returns what stands in its place, as a new tensor.

        Raises:
            UserError: no such hook point, one that does not fire exactly once, or one whose value leads nowhere.
        """
        tokens = tokens.to(self.device)
        if not hook or edit is None:
            with torch.inference_mode():
                return self.bridge(tokens, return_type="logits")
        point, fired = self._point(hook), 0
        # The bridge has no such point of its own: the name stands for what the MLP's branch reads.
        if hook.endswith("hook_resid_mid") and point.name != hook:
            raise UserError(
                f"{hook}: TransformerLens replaces there only what the MLP reads, not the residual stream; "
                "take hook_resid_pre or hook_resid_post"
            )

        def replaced(tensor: Tensor, hook: Any) -> Tensor:
            nonlocal fired
            fired += 1
            return edit(tensor.flatten(2)).view(tensor.shape)

        handle = point.add_hook(replaced)
        try:
            with torch.inference_mode():
                logits = self.bridge(tokens, return_type="logits")
        finally:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
        if fired != 1:
            raise UserError(f"{hook}: fires {fired} times in one pass of {self.name}, so it cannot be replaced")
        return logits

    def _point(self, hook: str) -> Any:
        points = self.bridge.hook_dict
        if hook not in points:
            raise UserError(f"{self.name} has no hook point {hook!r}; {choices(hook, points)}")
        return points[hook]

    def _capture(self, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        """What the hook points hold, in their own shapes."""
        points = {hook: self._point(hook) for hook in hooks}
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hooked(tensor: Tensor, hook: Any) -> None:
                seen[name] = tensor.detach().clone()
                if len(seen) == len(hooks):
                    raise _AllSeen

            return hooked

        handles = [(points[hook], points[hook].add_hook(keep(hook))) for hook in hooks]
        try:
            with torch.inference_mode(), contextlib.suppress(_AllSeen):
                self.bridge(tokens, return_type=None)
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)
        for hook in hooks:
            if hook not in seen:
                raise UserError(f"{hook}: the forward pass of {self.name} never fires it; take another hook point")
        return seen
