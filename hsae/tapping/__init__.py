"""The fast way to a model's activations: its own weights, the layers below the last hook point, and nothing else.

`read_parts` reads what the computation needs from TransformerLens' bridge, for the architectures that it knows exactly;
`FastTap` computes. Whoever uses it holds it against the bridge first (see `LM.trust_fast`).
"""

from hsae.tapping.parts import Parts, read_parts
from hsae.tapping.tap import FastTap

__all__ = ["FastTap", "Parts", "read_parts"]
