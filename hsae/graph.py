"""A learner's training step as a CUDA graph, and batches that are on the device before they are asked for.

A step is some twenty small kernels beside the large ones; launched one by one from Python they, not the arithmetic, set
the pace. A graph replays them in one launch. It computes on fixed memory: batch, rate and penalty are written into
tensors of its own before a replay, and what the step makes anew is copied over the old weights and state in it.

Nothing here waits for the device. On a CPU nothing is captured and every step runs as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hsae.forward import Forward
from hsae.fused_forward import Products, fused_forward
from hsae.learner import Learner, Moment, accumulate
from hsae.rules import Weights
from hsae.rules.backprop import Backprop
from hsae.rules.softhebb import SoftHebb
from hsae.store.rows import RowStream
from hsae.streaming import StreamRows

# Steps that run as they stand before one is captured: kernels are compiled and libraries make ready in them.
WARM = 3


def graphable(learner: Learner) -> bool:
    """Whether a learner's steps are always the same operations, need no number read back, and have their kernels.

    The other rules and variants have steps that nobody has yet seen to need nothing from the host.
    """
    setup = learner.setup
    plain = setup.revive is None and learner.steering.target is None and not setup.variant.whole_batch
    fused = setup.variant.selection(learner.weights["encoder"].extra) is not None
    return plain and fused and all(isinstance(rule, Backprop | SoftHebb) for rule in learner.rules.values())


class StepGraph:
    """Steps of one learner on batches of one size. The learner may be stepped otherwise in between.

    Args:
        learner: one that is `graphable`. After a step its weights and state lie in the graph's memory.
        batch: tokens in a batch.
        last_fired: for each latent the number of training tokens seen when it last fired; changed in place.
        products: how numbers are multiplied, where kernels are fused.
        micro_batch: tokens computed at once where they are not; 0: as many as are fast.
        fixed: the same operations every step, on fixed memory, fused where they can be: what a graph can hold. By
            default on CUDA devices only; elsewhere a step is the plain one.
        capture: replay them as a captured graph; on CUDA devices, by default.
    """

    def __init__(
        self,
        learner: Learner,
        batch: int,
        last_fired: Int[Tensor, "latent"],
        products: Products = "ieee",
        micro_batch: int = 0,
        fixed: bool | None = None,
        capture: bool | None = None,
    ) -> None:
        device, width = learner.centre.device, len(learner.centre)
        self.learner, self.micro_batch = learner, micro_batch
        self.products: Products = products
        self.fixed = device.type == "cuda" if fixed is None else fixed
        self.capture = self.fixed and device.type == "cuda" if capture is None else capture
        self._learned = {name for name, rule in learner.rules.items() if isinstance(rule, Backprop)}
        self._x = torch.zeros(batch, width, device=device)
        self._rate, self._l1 = torch.ones((), device=device), torch.zeros(1, device=device)
        self._numbers: dict[int, float] = {}
        self._seen, self._last_fired = torch.zeros((), dtype=torch.int64, device=device), last_fired
        self._weights: dict[str, Weights] = {}
        self._state: dict[str, dict[str, Tensor]] = {}
        self._warm, self._graph = 0, None

    def step(self, x: Float[Tensor, "token width"], moment: Moment) -> None:
        """One step from a batch, not centred. The first of a training is not for here: setups may fit a gain in it."""
        schedule = self.learner.setup.schedule
        variant = self.learner.setup.variant.weighted(schedule.sparsity(moment.step))
        selection = variant.selection(self.learner.weights["encoder"].extra)
        self._set(self._rate, schedule.rate(moment.step, moment.steps))
        self._set(self._l1, 0.0 if selection is None else selection.l1)
        self._set(self._seen, moment.step * len(self._x))
        self._x.copy_(x, non_blocking=True)
        self._adopt()
        if not self.fixed:
            self.learner.begin(self._x, moment, self.micro_batch)
            self._run(moment)
        elif not self.capture:
            self._run()
        elif self._graph is None and self._warm < WARM:
            self._warm += 1
            self._beside()
        else:
            self._replay()

    def _replay(self) -> None:
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may copy to the device meanwhile. Capturing computes nothing yet.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._run()
        self._graph.replay()

    def _set(self, tensor: Shaped[Tensor, "..."], value: float | int) -> None:
        """Fill a tensor where it does not hold the value yet."""
        if self._numbers.get(id(tensor)) != value:
            self._numbers[id(tensor)] = value
            tensor.fill_(value)

    def _beside(self) -> None:
        """A step as it will be captured, on a stream of its own, as graphs want it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)

    def _adopt(self) -> None:
        """Take over weights and state that another step, or a checkpoint, left in other memory."""
        learner = self.learner
        if not self._weights:
            # A counter that lay on the host would be a constant of the graph.
            self._weights = {name: weights.map(torch.clone) for name, weights in learner.weights.items()}
            device = self._x.device if self.fixed else None
            self._state = {
                name: {key: value.to(device or value.device, copy=True) for key, value in state.items()}
                for name, state in learner.state.items()
            }
        self._keep()

    def _keep(self) -> None:
        """Copy what the learner has into the graph's memory, and let it have that."""
        for name, weights in self._weights.items():
            _copy(weights.items(), self.learner.weights[name].items())
            _copy(self._state[name], self.learner.state[name])
            self.learner.weights[name] = weights
            self.learner.state[name] = self._state[name]

    def _run(self, moment: Moment | None = None) -> None:
        """The step itself: without a moment, operations on fixed memory that are the same every time."""
        statistics: dict[str, Any] = {}
        fired = torch.zeros_like(self._last_fired, dtype=torch.float32)
        for forward in self._forwards():
            accumulate(statistics, self.learner.statistics(forward))
            fired += forward.usage.fired
        schedule = self.learner.setup.schedule
        if moment is not None:
            self.learner.update(statistics, moment)
        elif schedule.decay == "none" and not schedule.warmup:
            self.learner.update(statistics)
        else:
            self.learner.update(statistics, rate=self._rate)  # pyright: ignore[reportCallIssue]
        self._keep()
        self._last_fired.copy_(torch.where(fired > 0, self._seen, self._last_fired))

    def _forwards(self) -> Iterable[Forward]:
        learner = self.learner
        if self.fixed:
            variant, x = learner.setup.variant, self._x - learner.centre
            forward = fused_forward(x, learner.weights, variant, self._learned, self.products, l1=self._l1)
            if forward is not None:
                return [forward]
        return learner.forwards(self._x, self.micro_batch)


def _copy(there: Mapping[str, Shaped[Tensor, "..."]], new: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    for key, value in there.items():
        if new[key] is not value:
            value.copy_(new[key], non_blocking=True)


class Uploads:
    """Batches on a device, each copied there while the one before it is used: the same batches in the same order.

    A batch's memory is used again: it holds until the next batch is asked for. On a CPU they pass as they are.

    Args:
        batches: on the host, all of one size.
        device: where to.
    """

    def __init__(self, batches: Iterator[Float[Tensor, "token width"]], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._slots: list[dict[str, Any]] = []
        self._pending: dict[str, Any] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._turn = 0

    def __iter__(self) -> Uploads:
        return self

    def __next__(self) -> Float[Tensor, "token width"]:
        if self._device.type != "cuda":
            return next(self._batches)
        slot = self._pending or self._begin()
        if slot is None:
            raise StopIteration
        current = torch.cuda.current_stream()
        current.wait_event(slot["there"])
        # What was given last time is no longer read by anything that comes after this.
        for other in self._slots:
            if other is not slot:
                other["free"].record(current)
        self._pending = self._begin()
        return slot["device"]

    def _begin(self) -> dict[str, Any] | None:
        """Start the copy of the next batch; None after the last."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        if len(self._slots) < 2:
            slot = {
                "host": torch.empty_like(batch, pin_memory=True),
                "device": torch.empty_like(batch, device=self._device),
                "there": torch.cuda.Event(),
                "free": torch.cuda.Event(),
            }
            self._slots.append(slot)
        else:
            slot = self._slots[self._turn]
            self._turn = 1 - self._turn
            # The host buffer may still be on its way, from two batches ago.
            slot["there"].synchronize()
        slot["host"].copy_(batch)
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot["free"])
            slot["device"].copy_(slot["host"], non_blocking=True)
            slot["there"].record(self._stream)
        return slot


def on_device(
    rows: RowStream | StreamRows, batch: int, start: int, device: torch.device
) -> Iterator[Float[Tensor, "token width"]]:
    """A store's batches on a device: from rows that all lie in its memory if they fit, else uploaded ahead."""
    if isinstance(rows, RowStream) and fits(rows.rows_per_epoch, rows.width, rows.dtype.itemsize, device):
        resident = Resident(rows.shards(), rows.rows_per_epoch, device)
        return (resident.pick(numbers) for numbers in rows.numbers(batch, start))
    return Uploads(rows.batches(batch, start=start), device)


def fits(rows: int, width: int, itemsize: int, device: torch.device, share: float = 0.7) -> bool:
    """Whether so many activations take no more than a share of what is free on a CUDA device."""
    return device.type == "cuda" and rows * width * itemsize <= share * torch.cuda.mem_get_info(device)[0]


class Resident:
    """All activations of a training in a device's memory, from which batches are picked by their rows' numbers.

    Args:
        chunks: the activations in the store's order, in the store's dtype.
        rows: how many there are.
        device: where they go.
    """

    def __init__(self, chunks: Iterable[Float[Tensor, "_ width"]], rows: int, device: torch.device) -> None:
        done, chunks = 0, iter(chunks)
        first = next(chunks)
        self.rows = torch.empty(rows, first.shape[1], dtype=first.dtype, device=device)
        for chunk in chain([first], chunks):
            self.rows[done : done + len(chunk)].copy_(chunk)
            done += len(chunk)
        assert done == rows

    def pick(self, numbers: Int[Tensor, "token"]) -> Float[Tensor, "token width"]:
        """The rows of these numbers, in their order, in float32."""
        host = numbers.pin_memory() if self.rows.is_cuda and not numbers.is_cuda else numbers
        return self.rows[host.to(self.rows.device, non_blocking=True)].float()
