"""Hebbian surgery: write, erase, move and verify a memory in a weight matrix, with a certificate, undone exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hsae.config import require
from hsae.lab import LabConfig

if TYPE_CHECKING:
    from rich.console import Console

Operation = Literal["study", "inject", "remove", "move", "strengthen", "weaken", "verify", "survey", "diff", "undo"]


@dataclass(frozen=True)
class SurgeryConfig(LabConfig):
    """Operate on a memory. Operations: study (all of it, as a report), inject, remove, move, strengthen, weaken,
    verify, survey, diff, undo."""

    operation: Operation = "study"
    """what to do: the word after `surgery`"""
    memory: Literal["hopfield", "mlp", "ov", "qk"] = "hopfield"
    """a Hopfield layer, an MLP's output matrix, what an attention head writes (its part of W_O), or where it looks (of
    W_Q); with --run an SAE"""
    strength: str = "auto"
    """size of the change as a share of the matrix's Frobenius norm; auto: the smallest that verifies"""
    strength_unit: Literal["fraction", "percent"] = "fraction"
    """unit of strength: 0.1 as a fraction is a change of 10%"""
    factor: float = 2.0
    """strengthen and weaken: how much more, or less, the matrix is to hold the pattern"""
    anchor: Literal["target", "basin"] = "target"
    """write at the target, or, as the source does, where the dynamics lead from it"""
    form: Literal["symmetric", "source"] = "symmetric"
    """f(p) f(p)', or the source's p f(p)'"""
    protect: bool = True
    """keep what else is stored: other basins, other prompts (protect_prompts), other latents"""
    noise: float = 0.1
    """verification: noise on the cue, as a share of the target's norm"""
    convention: Literal["norm", "per-coordinate"] = "norm"
    """what that share is of: the noise vector's norm, or each coordinate's standard deviation, as the source has it"""
    trials: int = 20
    """verification: noisy starts"""
    threshold: float = 0.9
    """verification: cosine above which a start has come back"""
    seed: int | None = None
    """of noise, probes and random memories (None: 0); with --run, the seed of the run's setup (None: its first)"""
    json: bool = False
    """print the certificate as JSON"""
    matrix: str = ""
    """hopfield: FILE.safetensors, or FILE.safetensors:KEY, with a square matrix; empty: made from random memories. diff
    and undo: the file of an edit"""
    memories: int = 5
    """hopfield: random patterns of +1 and -1 in the made matrix"""
    dim: int = 64
    """hopfield: width of the made matrix"""
    degree: int = 3
    """hopfield: n of f(x) = sign(x) |x|^(n - 1)"""
    beta: float = 7.0
    """hopfield: slope of the tanh"""
    target: str = ""
    """hopfield: a basin's number in the survey, FILE.safetensors:KEY with a vector, or random; empty: random to inject,
    else basin 0. run: FILE.safetensors:KEY, the direction to inject or to move to"""
    destination: str = ""
    """move: where to, said as target is (empty: random); mlp and ov: the prompt that is to recall it instead"""
    save: str = ""
    """where to write the edit; empty: beside the matrix, or under cache/lab"""
    model: str = "bundled"
    """mlp, ov, qk: the language model, as for hsae harvest"""
    layer: int = 0
    """mlp, ov, qk: the block"""
    head: int = 0
    """ov, qk: the head"""
    prompt: str = "Once upon a time there was a little"
    """mlp, ov, qk: the cue is what the layer reads at this text's last token"""
    token: str = ""
    """mlp, ov: the value is the output that raises this token, such as " dog"; empty: what the prompt recalls now"""
    position: int = 0
    """qk: the position of the prompt that the last token is to look at"""
    rule: Literal["hebbian", "delta", "rome", "null-space"] = "rome"
    """mlp, ov, qk: how the cue is written"""
    protect_prompts: tuple[str, ...] = ()
    """mlp, ov, qk: texts whose outputs at the last token must not change"""
    run: str = ""
    """operate on an SAE of this run: name or path"""
    setup: str = ""
    """run: the setup; empty: its first"""
    latent: str = ""
    """run: latents, such as 27 or 27,30-35 (of inject: the one to overwrite; empty: the least used)"""
    to_run: str = ""
    """run: of inject and move RUN[:SETUP[:SEED]], whose latent is the target; of diff the other run"""
    to_latent: str = ""
    """run: inject, move: that latent"""
    how: Literal["overwrite", "dense"] = "overwrite"
    """run: overwrite or remove one latent's rows, or change all of them: inject by a Hebbian outer product, remove by
    the null space of the latent's direction"""
    name: str = ""
    """run: name of the new run; empty: made from the old one's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trials >= 20, "trials", "20 or more", self.trials)
        require(0 < self.threshold < 1, "threshold", "between 0 and 1", self.threshold)
        require(self.noise >= 0, "noise", "0 or above", self.noise)
        require(self.factor > 1, "factor", "above 1", self.factor)
        require(self.degree >= 2, "degree", "2 or above", self.degree)
        require(self.beta > 0, "beta", "above 0", self.beta)
        require(self.dim >= 2, "dim", "2 or above", self.dim)
        require(self.memories >= 1, "memories", "1 or above", self.memories)
        require(self.amount is None or self.amount > 0, "strength", "auto or a number above 0", self.strength)
        by_factor = self.operation in ("strengthen", "weaken") and not self.run
        wanted = f"auto to {self.operation}, where factor says how much"
        require(not by_factor or self.amount is None, "strength", wanted, self.strength)

    @property
    def amount(self) -> float | None:
        """The strength as a fraction of ‖W‖_F; None for auto."""
        if self.strength == "auto":
            return None
        try:
            return float(self.strength) / (100 if self.strength_unit == "percent" else 1)
        except ValueError:
            raise ValueError(f"strength must be auto or a number above 0, not {self.strength!r}") from None


def surgery(settings: SurgeryConfig, console: Console) -> None:
    """Do one operation, or write the report of all.

    Raises:
        UserError: nothing that can be operated on; one line says why.
    """
    if settings.run:
        from hsae.lab.surgery.runs import operate

        operate(settings, console)
    elif settings.operation == "study":
        from hsae.lab.chapter import publish
        from hsae.lab.surgery.study import chapter

        publish("surgery", settings, chapter, console)
    else:
        from hsae.lab.surgery.desk import operate

        operate(settings, console)
