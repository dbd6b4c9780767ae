"""What the paper says: Table 1, its Tables 2 and 3's patterns, and the settings it names. Numbers as printed."""

from __future__ import annotations

from dataclasses import dataclass

SETUPS = ("bp", "bp-tied", "bp-dec", "hebb-tied")
TITLES = {"bp": "BP", "bp-tied": "BP Tied", "bp-dec": "BP Dec", "hebb-tied": "Hebb Tied"}
METRICS = ("mse", "evr", "l1", "l0", "dictionary")

MODEL, TOKENS, STEPS, BATCH, SEEDS, LATENTS, WIDTH = "TinyStories-1M", 204_800_000, 62_500, 16_384, 5, 3200, 64
TEMPERATURE = 50.0


@dataclass(frozen=True)
class Published:
    """One line of Table 1; each metric as (mean, standard deviation) over 5 seeds."""

    mse: tuple[float, float]
    evr: tuple[float, float]
    l1: tuple[float, float]
    l0: tuple[float, float]
    dictionary: tuple[float, float]

    def mean(self, metric: str) -> float:
        """A metric's mean over seeds."""
        return getattr(self, metric)[0]


_ENCODER = {"l1": (1.17e-2, 7.6e-4), "l0": (22.3, 1.96), "dictionary": (1890.0, 53.8)}
TABLE_1 = {
    "bp": Published((4.0e-5, 7.3e-6), (0.929, 0.012), (2.56e-3, 8.9e-5), (32.4, 2.08), (612.0, 17.5)),
    "bp-tied": Published((2.04e-4, 4.3e-5), (0.391, 0.271), (7.04e-3, 8.5e-4), (12.0, 2.40), (24.2, 5.7)),
    "bp-dec": Published((1.63e-4, 5.8e-6), (0.615, 0.025), **_ENCODER),
    "hebb-tied": Published((7.29e-3, 1.75e-3), (-0.520, 0.110), **_ENCODER),
}

# Variance per dimension of the paper's activations, as its BP line implies it: MSE / (1 - EVR).
VARIANCE = TABLE_1["bp"].mse[0] / (1 - TABLE_1["bp"].evr[0])

# (latent, pattern) of Tables 2 (Hebb Tied) and 3 (BP), on NeelNanda/pile-10k.
PATTERNS = {
    "hebb-tied": (
        (27, "token “edd”"),
        (19, "token “tr”"),
        (9, "closing “>” before “</value”"),
        (86, "religious themes, “God” and “Him”"),
        (81, "intensifiers: “extremely”, “so”, “very”"),
    ),
    "bp": (
        (10, "token “OO” in “GOOGLE”"),
        (16, "token “resolution”"),
        (157, "tokens “good”, “great”"),
        (160, "tokens “trying”, “suggesting”, “intended”"),
        (487, "forms of “to be”: “were”, “are”, rarely “was”"),
    ),
}
