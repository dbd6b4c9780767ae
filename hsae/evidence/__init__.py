"""What a store says about the latents of an SAE: how often each fires, how strongly, on which tokens and where.

`survey` looks at all latents, `latent` at one. Numbers only; the terminal, the page and the server draw them. A latent
*fires* at a position where its activation is above zero. Positions that the store leaves out (keep=False) are no
evidence: they are neither encoded nor counted.
"""
