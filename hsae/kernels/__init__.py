"""Fast paths, each beside the plain PyTorch function that defines its result.

The fast paths of the CPU are C, compiled for the machine's own processor when first used (see `native`). Where there
is no C compiler, or `HSAE_KERNELS=torch` is set, PyTorch computes the same.
"""
