"""Which tools are compared at which task, and the coefficients that each is given.

Learning rates and L1 coefficients are in each tool's own convention and at its own scale of the activations, so they
cannot be equal. Those below were found by hand on a store of TinyStories activations (64 dimensions, 3,200 latents,
batches of 16,384) so that after 60 steps all have an L0 of about 40; a dense step's time does not depend on it, a
sparse one's does. hsae's own default, 0.01 at a learning rate of 0.01, ends at 12 there. What came out is in the
report. TopK has equal L0 by construction, SoftHebb no penalty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from peers.job import Job

from harness.pool import Entry

TASKS = ("relu", "topk", "softhebb")
OURS = "hsae"

# The short form: as shipped, and as fast as settings make it. All others have huge pages only.
SHORT = {
    "relu": (
        "hsae",
        "hsae (PyTorch)",
        "plain PyTorch",
        "torch.compile",
        "sae-lens",
        "sae-lens, compiled",
        "dictionary_learning",
        "overcomplete",
    ),
    "topk": ("hsae", "hsae (PyTorch)", "sparsify", "sparsify, Adam", "sae-lens, compiled", "dictionary_learning"),
    "softhebb": ("hsae", "hsae (PyTorch)", "naive PyTorch"),
}
AS_SHIPPED = ("sae-lens", "sparsify", "naive PyTorch")

# For ReLU: (L1 coefficient, learning rate).
RELU: dict[str, tuple[float, float]] = {
    "ours": (0.01, 8e-3),
    "plain": (0.01, 8e-3),
    "saelens": (4.0, 4e-3),
    "dictionary_learning": (0.15, 3e-3),
    "overcomplete": (1.2, 4e-3),
}


def entries(task: str, job: Job, names: Iterable[str] = (), pages: Iterable[bool] = (False, True)) -> list[Entry]:
    """The lines of a task's comparison.

    Args:
        task: one of `TASKS`.
        job: sizes and data.
        names: only these; all when empty.
        pages: the settings of PyTorch's huge pages to run each in.
    """
    wanted = set(names)
    found = [entry for entry in _all(replace(job, task=task)) if not wanted or {entry.name, entry.module} & wanted]
    return [replace(entry, pages=huge) for entry in found for huge in pages]


def short(task: str, entries: Iterable[Entry]) -> list[Entry]:
    """Those that the short form measures."""
    return [entry for entry in entries if entry.name in SHORT[task] and entry.pages is (entry.name not in AS_SHIPPED)]


def names() -> list[str]:
    """Every tool's name."""
    job = Job("", "", 1, 1, 1, 1, 1)
    return sorted({entry.name for task in TASKS for entry in _all(replace(job, task=task))})


def _all(job: Job) -> list[Entry]:
    compiled = replace(job, options={**job.options, "compile": True})
    made = [
        Entry(OURS, "ours", job),
        Entry("hsae (PyTorch)", "ours", job, environment={"HSAE_KERNELS": "torch"}),
    ]
    if job.task == "softhebb":
        made += [Entry("naive PyTorch", "plain", job), Entry("naive, torch.compile", "plain", compiled)]
        return made
    made += [
        Entry("plain PyTorch", "plain", job),
        Entry("torch.compile", "plain", compiled),
        Entry("sae-lens", "saelens", job, "saelens"),
        Entry("sae-lens, compiled", "saelens", compiled, "saelens"),
        Entry("dictionary_learning", "dictionary_learning", job, "dictionary_learning"),
    ]
    if job.task == "topk":
        adam = replace(job, options={**job.options, "adam": True})
        made += [
            Entry("sparsify", "sparsify", job, "sparsify"),
            Entry("sparsify, Adam", "sparsify", adam, "sparsify"),
        ]
    made.append(Entry("overcomplete", "overcomplete", job, "overcomplete"))
    return [_with_coefficients(entry) for entry in made]


def _with_coefficients(entry: Entry) -> Entry:
    if entry.job.task != "relu":
        return entry
    l1, lr = RELU[entry.module]
    factor = entry.job.options.get("l1_factor", 1.0)
    return replace(entry, job=replace(entry.job, l1=l1 * factor, lr=lr))
