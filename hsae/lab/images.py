"""Labelled images from local files: CIFAR-10, Fashion-MNIST, class folders; else scikit-learn's digits."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.errors import UserError, one_line

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
                names = sorted(n for n in archive.namelist() if _is_picture(PurePosixPath(n)))
                return _pictures(place.stem, ((PurePosixPath(n), archive.read(n)) for n in names))
        if place.is_dir() and any(place.glob("*_batch*.bin")):
            return _cifar_batches(place)
        if idx := _idx_files(place):
            return _idx(idx)
        if place.is_dir():
            files = sorted(f for f in place.rglob("*") if _is_picture(f))
            inside = ((PurePosixPath(f.relative_to(place).as_posix()), f.read_bytes()) for f in files)
            return _pictures(place.resolve().name, inside)
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as images ({one_line(error)})") from None
    raise UserError(f"{path}: no labelled images there; --images wants {WANTED}")


def _is_picture(path: PurePath) -> bool:
    # A Mac's archives have a `._NAME` beside each file.
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("without --images the digits of scikit-learn are taken: pip install hsae[lab]") from None
    found: Any = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    return _split("digits", tuple(map(str, range(10))), (pixels, found.target))


def _pictures(name: str, files: Iterator[tuple[PurePosixPath, bytes]]) -> Images:
    """Images in class folders; where those are in folders `train` and `test`, that is the split."""
    from PIL import Image

    classes: dict[str, int] = {}
    pixels, labels, parts = [], [], []
    for path, data in files:
        with Image.open(io.BytesIO(data)) as picture:
            grey = picture.mode in ("1", "L")
            values = np.asarray(picture.convert("L" if grey else "RGB"))
        pixels.append(values[None] if grey else values.transpose(2, 0, 1))
        if pixels[-1].shape != pixels[0].shape:
            raise UserError(f"{name}: images of different sizes or colours ({pixels[0].shape} and {pixels[-1].shape})")
        labels.append(classes.setdefault(path.parent.name, len(classes)))
        parts.append(next((part for part in path.parts[:-2] if part in ("train", "test")), ""))
    if len(classes) < 2:
        raise UserError(f"{name}: images of at least two classes are wanted, each in a folder of the class's name")
    x, y = np.stack(pixels), np.array(labels)
    if {*parts} == {"train", "test"}:
        test = np.array(parts) == "test"
        return _made(name, tuple(classes), "the folders train and test", (x[~test], y[~test]), (x[test], y[test]))
    return _split(name, tuple(classes), (x, y))


def _cifar_batches(folder: Path) -> Images:
    def read(pattern: str) -> Pixels:
        rows = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in sorted(folder.glob(pattern))])
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]

    if not (any(folder.glob("data_batch_*.bin")) and any(folder.glob("test_batch.bin"))):
        raise UserError(f"{folder}: CIFAR-10 is data_batch_1.bin to data_batch_5.bin and test_batch.bin")
    return _made("cifar-10", CIFAR, "the official split", read("data_batch_*.bin"), read("test_batch.bin"))


def _idx_files(place: Path) -> list[Path]:
    """The image files in IDX format that a path stands for, training before test.

    Raises:
        UserError: they are not one data set.
    """
    files = place.iterdir() if place.is_dir() else [place]
    found = sorted((f for f in files if "images-idx3-ubyte" in f.name), key=lambda f: ("train" not in f.name, f.name))
    if len(found) > 2 or (len(found) == 2 and ["train" in f.name for f in found] != [True, False]):
        names = ", ".join(f.name for f in found)
        raise UserError(f"{place}: IDX files of more than one data set ({names}); name one of them")
    return found


def _idx(files: list[Path]) -> Images:
    parts: list[Pixels] = []
    for file in files:
        labels = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
        if not labels.exists():
            raise UserError(f"{file}: its labels, {labels.name}, are not beside it")
        parts.append((_read_idx(file, 3)[:, None], _read_idx(labels, 1)))
        if len(parts[-1][0]) != len(parts[-1][1]):
            raise UserError(f"{file}: {len(parts[-1][0])} images, and {len(parts[-1][1])} labels in {labels.name}")
    fashion = "fashion" in files[0].name or "fashion" in files[0].resolve().parent.name
    names = FASHION if fashion else tuple(str(i) for i in range(1 + max(int(y.max(initial=0)) for _, y in parts)))
    name = "fashion-mnist" if fashion else "mnist"
    if len(parts) == 2:
        return _made(name, names, "the official split", *parts)
    return _split(name, names, parts[0])


def _read_idx(path: Path, dims: int) -> np.ndarray:
    """A file of unsigned bytes in LeCun's IDX format, gzipped or not, with that many dimensions."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        if file.read(4) != bytes((0, 0, 8, dims)):
            raise UserError(f"{path}: not an IDX file of bytes in {dims} dimension{'s' * (dims > 1)}")
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
    if len(classes) < 2:
        raise UserError(f"{name}: images of one class; at least two are wanted")
    for part, (_, labels) in (("training", train), ("test", test)):
        if {*np.unique(labels).tolist()} != {*range(len(classes))}:
            raise UserError(f"{name}: the {part} images are not of {len(classes)} classes ({split})")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise UserError(f"{name}: training images of {train[0].shape[1:]}, test images of {test[0].shape[1:]}")
    x, held = (torch.from_numpy(pixels.copy()).float() for pixels, _ in (train, test))
    y, held_y = (torch.from_numpy(labels.astype(np.int64)) for _, labels in (train, test))
    # In float64, so that the number of threads does not show. A channel of one value is left at 0.
    std, mean = (t.float() for t in torch.std_mean(x.double(), dim=(0, 2, 3), keepdim=True))
    std = torch.where(std > 0, std, 1.0)
    return Images(name, classes, split, (x - mean) / std, y, (held - mean) / std, held_y)
