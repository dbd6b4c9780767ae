"""The surgeon: writes, erases and moves associations by rank-1 changes, verifies each, and undoes it exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity as cosine

from hsae.errors import UserError
from hsae.intervals import wilson
from hsae.lab.surgery.certificate import Basins, Certificate, Difference, Protocol, Reading, Verdict, difference
from hsae.lab.surgery.memory import Association, Change, Form, Memory, Target, projected

GRID = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
"""strengths that `auto` tries in turn; then it halves the step below the first that does it, five times"""
SAME, MOVED, KEPT, EMPTY = 0.95, 0.9, 0.9, 1e-6
Weights = Mapping[str, Tensor]


class How(TypedDict, total=False):
    """Options of an edit.

    strength: ‖ΔW‖_F / ‖W‖_F; None: the size that the change has of itself (the delta rule, overwriting), else the
        smallest that does it: all noisy starts come back (inject); none does, at p and -p, or support is 0 (remove)
    protect: what must stay. The change is projected off what these read, and they are verified again; where one is lost
        all the same, the weights are restored.
    anchor: write at the target, or, as the source does, where the dynamics lead from it.
    form: f(p) f(p)ᵀ, which keeps a symmetric matrix symmetric, or the source's p f(p)ᵀ.
    """

    strength: float | None
    protect: Sequence[Target]
    anchor: Literal["target", "basin"]
    form: Form


@dataclass(frozen=True)
class _Step:
    """One outer product: verified at `tested`; `unit` is its size over ‖W‖_F."""

    sign: int
    tested: Association
    change: Change
    unit: float


class Surgeon:
    """Operates on a memory, in place. `certificates`: of the edits in force, the last of which `undo` takes back."""

    def __init__(self, memory: Memory, protocol: Protocol | None = None) -> None:
        self.memory, self.protocol = memory, protocol or Protocol()
        self.certificates: list[Certificate] = []
        self._before: list[dict[str, Tensor]] = []

    def verify(self, what: Target) -> Verdict:
        """Noisy starts at an association, or at a pattern: how many come back."""
        what, how = Association.of(what), self.protocol
        # Drawn on the CPU, so that the device does not change the noise.
        noise = torch.randn(how.trials, len(what.cue), generator=self._generator(1), dtype=torch.float64)
        size = how.noise * float(what.cue.norm())
        if how.convention == "norm":
            noise *= size / noise.norm(dim=1, keepdim=True)
        else:
            noise *= max(size, how.noise)
        found = cosine(self.memory.recall(what.cue + noise.to(what.cue)).double(), what.value.double(), dim=1)
        hits = int((found > how.threshold).sum())
        return Verdict(hits, how.trials, *wilson(hits, how.trials), cosine=float(found.mean()))

    def survey(self, count: int = 200) -> Basins:
        """Where random starts lead: greedy clusters of cosine above 0.95.

        Raises:
            UserError: the memory has no basins.
        """
        ends = self.memory.recall(self.memory.starts(count, self._generator(2)))
        full = ends[ends.norm(dim=1) >= EMPTY]
        patterns, population = full[:1], [0] * min(len(full), 1)
        for end in full:
            near = cosine(patterns, end[None], dim=1)
            if near.max() > SAME:
                population[int(near.argmax())] += 1
            else:
                patterns, population = torch.cat([patterns, end[None]]), [*population, 1]
        order = sorted(range(len(population)), key=lambda i: -population[i])
        patterns = patterns[order]
        unit = patterns / patterns.norm(dim=1, keepdim=True)
        mirror = tuple(int(row.argmin()) if row.min() < -SAME else -1 for row in unit @ unit.T)
        energy = self.memory.energy(patterns)
        energies = () if energy is None else tuple(energy.tolist())
        return Basins(patterns, tuple(population[i] for i in order), energies, mirror, count - len(full))

    def inject(self, target: Target, **how: Unpack[How]) -> Certificate:
        """Store an association.

        Raises:
            UserError: a target that is zero or not finite, or that lies in the span of what is protected.
        """
        return self._operate("inject", [(1, target)], how)

    def remove(self, target: Target, **how: Unpack[How]) -> Certificate:
        """Erase an association. Raises as `inject`."""
        return self._operate("remove", [(-1, target)], how)

    def move(self, source: Target, target: Target, **how: Unpack[How]) -> Certificate:
        """Erase one association, store another; both outer products are of the memory as it was. Raises as `inject`."""
        return self._operate("move", [(-1, source), (1, target)], how)

    def strengthen(self, target: Target, factor: float = 2.0, **how: Unpack[How]) -> Certificate:
        """Multiply what the matrix holds (`Memory.support`) of the basin nearest to a target, or of an association.

        Raises:
            UserError: it holds nothing of it; and as `inject`.
        """
        return self._operate("strengthen", [(1, target)], {"anchor": "basin", **how}, factor)

    def weaken(self, target: Target, factor: float = 2.0, **how: Unpack[How]) -> Certificate:
        """Divide it. Raises as `strengthen`."""
        return self._operate("weaken", [(-1, target)], {"anchor": "basin", **how}, 1 / factor)

    def diff(self, other: Weights | None = None) -> Difference:
        """How the matrix differs from other weights; None: from those before the first edit that is in force.

        Raises:
            UserError: of another shape.
        """
        if other is None:
            other = self._before[0] if self._before else self.memory.weights
        return difference(other[self.memory.matrix], self.memory.weights[self.memory.matrix])

    def undo(self) -> Certificate:
        """Take the last edit back, bit for bit; its certificate.

        Raises:
            UserError: there is none.
        """
        if not self._before:
            raise UserError(f"{self.memory.name}: no edit to undo")
        self.memory.assign(self._before.pop())
        return self.certificates.pop()

    def _operate(
        self, operation: str, targets: Sequence[tuple[int, Target]], how: How, factor: float | None = None
    ) -> Certificate:
        memory, base = self.memory, {name: weight.clone() for name, weight in self.memory.weights.items()}
        keep = [Association.of(each) for each in how.get("protect", ())]
        steps = [self._step(sign, target, how, keep, factor is not None) for sign, target in targets]
        probes = memory.probes(self._generator(3))
        led = memory.recall(probes)
        # What leads to the target is meant to move: it is no probe.
        ends = [mirrored.value for step in steps for mirrored in self._images(step.tested)]
        other = torch.stack([cosine(led, end[None], dim=1) for end in ends]).amax(0) <= MOVED
        probes, led = probes[other], led[other]
        before, alphas, notes = self._reading(steps, keep), [0.0] * len(steps), list[str]()
        strength, searched = how.get("strength"), False
        try:
            # What is moved is erased again after the other half is written, which may have brought it back.
            for i in (0, 1, 0) if len(steps) > 1 else (0,):
                step = steps[i]
                if factor is not None:
                    alphas[i] = self._scaling(base, step, before.support, factor)
                elif strength is not None or step.change.exact:
                    alphas[i] = step.sign * (1.0 if strength is None else strength / step.unit)
                else:
                    searched, alphas[i] = True, self._search(base, alphas, steps, i)
            self._set(base, alphas, steps)
            after, now, change = self._reading(steps, keep), memory.recall(probes), self.diff(base)
            done = all(self._done(step) for step in steps)
        except BaseException:
            memory.assign(base)
            raise
        there = (cosine(led, now, dim=1) > MOVED) | (torch.maximum(led.norm(dim=1), now.norm(dim=1)) < EMPTY)
        if factor is not None:
            done = abs(after.support - factor * before.support) <= 0.01 * before.support
        if 0.0 in alphas:
            notes.append(f"no strength up to {GRID[-1]:g} does it")
        if lost := sum(b.rate >= KEPT > a.rate for b, a in zip(before.protected, after.protected, strict=True)):
            notes.append(f"{lost} of {len(keep)} protected patterns were lost")
        certificate = Certificate(
            operation,
            memory.name,
            achieved=done and not notes,
            restored=bool(notes),
            strength=tuple(abs(alpha) * step.unit for alpha, step in zip(alphas, steps, strict=True)),
            auto=searched,
            rank=change.rank,
            norm=change.norm,
            before=before,
            after=after,
            probes=len(probes),
            moved=1 - float(there.double().mean()) if len(probes) else 0.0,
            drift=float((now - led).norm() / led.norm().clamp_min(1e-30)),
            anchor="target" if isinstance(targets[-1][1], Association) else how.get("anchor", "target"),
            form=how.get("form", "symmetric"),
            protocol=self.protocol,
            notes=tuple(notes),
        )
        if notes:
            memory.assign(base)
        else:
            self._before.append(base)
            self.certificates.append(certificate)
        return certificate

    def _images(self, what: Association) -> list[Association]:
        """An association, and its mirror where the memory has it."""
        return [what, Association(-what.cue, -what.value)] if self.memory.odd else [what]

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(1009 * self.protocol.seed + purpose)

    def _step(self, sign: int, target: Target, how: How, keep: Sequence[Association], scaling: bool) -> _Step:
        """Where to write, where to verify, and the change, projected."""
        memory, what = self.memory, Association.of(target)
        if any(not bool(part.isfinite().all()) or not bool(part.any()) for part in (what.cue, what.value)):
            raise UserError(f"{memory.name}: the target is zero or not finite")
        written = tested = what
        if not isinstance(target, Association):
            scaled, there = memory.scaled(target), scaling or sign < 0
            written = tested = Association.of(memory.storable(scaled))
            if how.get("anchor") == "basin":
                basin = memory.recall(scaled[None])[0]
                if basin.norm() >= EMPTY:
                    written = Association.of(basin)
                elif there:
                    raise UserError(f"{memory.name}: the target leads to zero, where there is nothing to work on")
                tested = written if there else tested
        # What makes an existing association weaker makes it stronger, too.
        change = memory.change(written, -1 if scaling else sign, how.get("form", "symmetric"))
        if keep:
            change = projected(change, memory.reads(written), torch.stack([memory.reads(each) for each in keep]))
        size = float(change.left.double().norm() * change.right.double().norm())
        if size == 0:
            raise UserError(f"{memory.name}: there is nothing to change for this target")
        return _Step(sign, tested, change, size / float(memory.weights[memory.matrix].double().norm()))

    def _set(self, base: Weights, alphas: Sequence[float], steps: Sequence[_Step]) -> None:
        """Assign the weights before the edit plus each step's change times its alpha, rounded once."""
        new = {name: weight.double() for name, weight in base.items()}
        for alpha, step in zip(alphas, steps, strict=True):
            change = torch.outer(step.change.left.double(), step.change.right.double())
            for name, more in {**step.change.others, self.memory.matrix: change}.items():
                new[name] = new[name] + alpha * more.double()
        self.memory.assign({name: weight.to(base[name].dtype) for name, weight in new.items()})

    def _reading(self, steps: Sequence[_Step], keep: Sequence[Association]) -> Reading:
        what, energy = steps[-1].tested, self.memory.energy(steps[-1].tested.value[None])
        return Reading(
            target=self.verify(what),
            mirror=self.verify(self._images(what)[1]) if self.memory.odd else None,
            origin=self.verify(steps[0].tested) if len(steps) > 1 else None,
            protected=tuple(self.verify(each) for each in keep),
            support=self.memory.support(what),
            energy=None if energy is None else float(energy[0]),
            measures=self.memory.measures(),
        )

    def _done(self, step: _Step) -> bool:
        if step.sign > 0:
            return self.verify(step.tested).hits == self.protocol.trials
        back = any(self.verify(image).hits for image in self._images(step.tested))
        return not back or self.memory.support(step.tested) <= 0

    def _scaling(self, base: Weights, step: _Step, support: float, factor: float) -> float:
        """The alpha that multiplies the support, which is linear in the matrix."""
        self._set(base, [1.0], [step])
        slope = self.memory.support(step.tested) - support
        if support <= 0 or slope <= 0:
            raise UserError(f"{self.memory.name}: holds nothing of the target that could be made stronger or weaker")
        return (factor - 1) * support / slope

    def _search(self, base: Weights, alphas: Sequence[float], steps: Sequence[_Step], i: int) -> float:
        """The smallest alpha of one step that does it, the others as they are; 0 where none does."""
        sign, unit = steps[i].sign, steps[i].unit

        def works(strength: float) -> bool:
            self._set(base, [*alphas[:i], sign * strength / unit, *alphas[i + 1 :]], steps)
            return self._done(steps[i])

        high = next((strength for strength in GRID if works(strength)), 0.0)
        low = max((strength for strength in GRID if strength < high), default=0.0)
        for _ in range(5 if high else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if works(middle) else (middle, high)
        return sign * high / unit
