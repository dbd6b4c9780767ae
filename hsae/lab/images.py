"""Labelled images from local files: CIFAR-10, Fashion-MNIST, class folders; else scikit-learn's digits."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
WANTED = (
    "a folder or .zip of class folders with .jpg or .png images, CIFAR-10's binary batches (data_batch_1.bin …), "
    "or IDX files (…-images-idx3-ubyte.gz with their labels)"
)


@dataclass(frozen=True)
class Images:
    """A labelled data set in two parts. Channels have mean 0 and variance 1 over the training part.

    Attributes:
        name: of the data set.
        classes: their names.
        split: how the two parts came about, in words.
    """

    name: str
    classes: tuple[str, ...]
    split: str
    x_train: Float[Tensor, "image channel height width"]
    y_train: Int[Tensor, "image"]
    x_test: Float[Tensor, "image2 channel height width"]
    y_test: Int[Tensor, "image2"]


Pixels = tuple[np.ndarray, np.ndarray]  # [image channel height width] uint8, [image] class


@lru_cache(maxsize=2)
def load_images(path: str = "") -> Images:
    """Read a data set.

    Where the files hold no official split, every fifth image of a class is for testing.

    Args:
        path: a file or folder; empty: scikit-learn's 8 x 8 digits.

    Raises:
        UserError: nothing there that can be read as labelled images.
    """
    if not path:
        return _digits()
    place = Path(path)
    if not place.exists():
        raise UserError(
            f"{path}: no such file or folder; --images wants {WANTED}, or nothing for scikit-learn's digits"
        )
    try:
        if place.suffix == ".zip":
            with zipfile.ZipFile(place) as archive:
                names = [n for n in archive.namelist() if n.lower().endswith(PICTURES)]
                return _pictures(place.stem, ((PurePosixPath(n).parent.name, archive.read(n)) for n in sorted(names)))
        if place.is_dir() and any(place.glob("*_batch*.bin")):
            return _cifar_batches(place)
        if idx := _idx_files(place):
            return _idx(idx)
        if place.is_dir():
            files = sorted(f for f in place.rglob("*") if f.suffix.lower() in PICTURES)
            return _pictures(place.resolve().name, ((f.parent.name, f.read_bytes()) for f in files))
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path}: cannot be read as images ({error})") from None
    raise UserError(f"{path}: no labelled images there; --images wants {WANTED}")


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("without --images the digits of scikit-learn are taken: pip install hsae[lab]") from None
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    return _split("digits", tuple(map(str, range(10))), (pixels, found.target))


def _pictures(name: str, files: Iterator[tuple[str, bytes]]) -> Images:
    from PIL import Image

    classes: dict[str, int] = {}
    pixels, labels = [], []
    for kind, data in files:
        with Image.open(io.BytesIO(data)) as picture:
            grey = picture.mode in ("1", "L", "I", "I;16")
            values = np.asarray(picture.convert("L" if grey else "RGB"))
        pixels.append(values[None] if grey else values.transpose(2, 0, 1))
        if pixels[-1].shape != pixels[0].shape:
            raise UserError(f"{name}: images of different sizes or colours ({pixels[0].shape} and {pixels[-1].shape})")
        labels.append(classes.setdefault(kind, len(classes)))
    if len(classes) < 2:
        raise UserError(f"{name}: images of at least two classes are wanted, each in a folder of the class's name")
    return _split(name, tuple(classes), (np.stack(pixels), np.array(labels)))


def _cifar_batches(folder: Path) -> Images:
    def read(pattern: str) -> Pixels:
        rows = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in sorted(folder.glob(pattern))])
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]

    if not (any(folder.glob("data_batch_*.bin")) and any(folder.glob("test_batch.bin"))):
        raise UserError(f"{folder}: CIFAR-10 is data_batch_1.bin to data_batch_5.bin and test_batch.bin")
    return _made("cifar-10", CIFAR, "the official split", read("data_batch_*.bin"), read("test_batch.bin"))


def _idx_files(place: Path) -> list[Path]:
    """The image files in IDX format that a path stands for, training before test."""
    if place.is_dir():
        found = [f for f in place.iterdir() if "images-idx3-ubyte" in f.name]
        return sorted(found, key=lambda f: "train" not in f.name)
    return [place] if "images-idx3-ubyte" in place.name else []


def _idx(files: list[Path]) -> Images:
    parts: list[Pixels] = []
    for file in files:
        labels = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
        if not labels.exists():
            raise UserError(f"{file}: its labels, {labels.name}, are not beside it")
        parts.append((_read_idx(file)[:, None], _read_idx(labels)))
        if len(parts[-1][0]) != len(parts[-1][1]):
            raise UserError(f"{file}: {len(parts[-1][0])} images, and {len(parts[-1][1])} labels in {labels.name}")
    fashion = "fashion" in files[0].name or "fashion" in files[0].resolve().parent.name
    names = FASHION if fashion else tuple(str(i) for i in range(int(parts[0][1].max()) + 1))
    name = "fashion-mnist" if fashion else "mnist"
    if len(parts) == 2:
        return _made(name, names, "the official split", *parts)
    return _split(name, names, parts[0])


def _read_idx(path: Path) -> np.ndarray:
    """A file of unsigned bytes in LeCun's IDX format, gzipped or not."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        zero, kind, dims = int.from_bytes(file.read(2)), *file.read(2)
        if zero != 0 or kind != 8 or not 1 <= dims <= 3:
            raise UserError(f"{path}: not an IDX file of bytes")
        shape = [int.from_bytes(file.read(4)) for _ in range(dims)]
        data = np.frombuffer(file.read(), np.uint8)
    if len(data) != math.prod(shape):
        raise UserError(f"{path}: cut short, {len(data):,} of {math.prod(shape):,} bytes")
    return data.reshape(shape)


def _split(name: str, classes: tuple[str, ...], pixels: Pixels) -> Images:
    x, y = pixels
    test = np.zeros(len(y), bool)
    for kind in range(len(classes)):
        test[np.flatnonzero(y == kind)[::5]] = True
    words = f"every fifth of {len(y):,} images of each class for testing"
    return _made(name, classes, words, (x[~test], y[~test]), (x[test], y[test]))


def _made(name: str, classes: tuple[str, ...], split: str, train: Pixels, test: Pixels) -> Images:
    x, y = torch.from_numpy(train[0].copy()).float(), torch.from_numpy(train[1].astype(np.int64))
    # In float64, so that the number of threads does not show.
    std, mean = (t.float() for t in torch.std_mean(x.double(), dim=(0, 2, 3), keepdim=True))
    held, held_y = torch.from_numpy(test[0].copy()).float(), torch.from_numpy(test[1].astype(np.int64))
    return Images(name, classes, split, (x - mean) / std, y, (held - mean) / std, held_y)
