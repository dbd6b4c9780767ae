"""C kernels: compiled for this machine's processor at first use, kept, and loaded with ctypes.

A compiler is taken from `$CC`, `cc`, `gcc` or `clang`, or from the `ziglang` package (`pip install 'hsae[fast]'`). What
was compiled lies in `~/.cache/hsae/kernels` (`$HSAE_KERNEL_CACHE`), under a name that changes with the source, the
compiler and the processor. Nothing compiled is ever shipped.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hsae.files import replacing

SOURCES = Path(__file__).with_name("csrc")
# Contractions to FMA are wanted, reorderings that change results from one compiler to the next are not.
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-pthread")


def off() -> bool:
    """Whether the user wants no compiled code."""
    return os.environ.get("HSAE_KERNELS", "native") == "torch"


@cache
def load(name: str) -> ctypes.CDLL | None:
    """The compiled `csrc/NAME.c`; None where it is switched off, no compiler is found, or compiling fails.

    Functions of a `CDLL` release Python's lock while they run.
    """
    if off():
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(name, compiler)))
    except (OSError, subprocess.SubprocessError):
        # A compiler that cannot make or this system that cannot load it: PyTorch computes the same.
        return None


def call(library: str, name: str, *arguments: Tensor | int | float | None) -> int:
    """Call a C function of a library that `load` gives, and return its result, if it has one.

    Args:
        library: the source's name.
        name: the function's.
        arguments: a tensor stands for a pointer to its numbers, None for no such pointer, an int for an int64_t, a
            float for a float.
    """
    loaded = load(library)
    assert loaded is not None
    function = getattr(loaded, name)
    function.restype = ctypes.c_int64
    return function(*map(_c, arguments))


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Where a CPU tensor's numbers lie. It must be contiguous, and the caller must keep it alive."""
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


def _c(value: Tensor | int | float | None) -> object:
    if isinstance(value, Tensor):
        return pointer(value)
    if value is None:
        return ctypes.c_void_p()
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


def packed_rows(
    library: str, W: Float[Tensor, "latent width"], b: Float[Tensor, "latent"] | None
) -> tuple[Float[Tensor, "_"], Float[Tensor, "_"]]:
    """An encoder's rows side by side, a panel of latents at a time, and its bias: as `csrc/panel.h` takes them.

    They are good until the next call in this thread.
    """
    latents, width = W.shape
    panel = call(library, "panel")
    padded = -(-latents // panel) * panel
    packed, bias = _room(padded * width), W.new_empty(padded)
    call(library, "pack", W.contiguous(), b, latents, width, packed, bias)
    return packed, bias


_kept = threading.local()
# Floats from which on PyTorch asks for huge pages. In small ones every panel costs the processor's page tables time:
# encoding then takes up to twice as long.
HUGE = 1 << 19


def _room(size: int) -> Float[Tensor, "_"]:
    """Memory for so many floats, the same from call to call."""
    room = getattr(_kept, "room", None)
    if room is None or len(room) < size:
        room = _kept.room = torch.empty(max(size, HUGE))
    return room[:size]


@cache
def _compiler() -> tuple[str, ...] | None:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = name.split()
        if words and (path := shutil.which(words[0])):
            return (path, *words[1:])
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    return None


def _compiled(name: str, compiler: tuple[str, ...]) -> Path:
    """The shared library, compiled if it is not there yet."""
    # Apple's and zig's compilers name the machine's own processor differently from gcc on x86.
    own = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = (*compiler, *FLAGS, own)
    sources = b"".join(path.read_bytes() for path in sorted([SOURCES / f"{name}.c", *SOURCES.glob("*.h")]))
    key = hashlib.sha256(repr((command, _processor())).encode() + sources).hexdigest()[:16]
    home = os.environ.get("HSAE_KERNEL_CACHE") or Path.home() / ".cache" / "hsae" / "kernels"
    path = Path(home) / f"{name}-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that compile at once must not write into one file.
        with replacing(path.with_name(f"{path.name}.{os.getpid()}")) as aside:
            done = subprocess.run(
                [*command, str(SOURCES / f"{name}.c"), "-o", str(aside), "-lm"], capture_output=True, timeout=120
            )
            done.check_returncode()
        os.replace(path.with_name(f"{path.name}.{os.getpid()}"), path)
    return path


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
