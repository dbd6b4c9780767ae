"""Labelled images from local files: every format, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hsae.errors import UserError
from hsae.lab.images import CIFAR, FASHION, Images, load_images

SHARED = Path(__file__).parents[2] / "shared" / "data" / "images"


@pytest.fixture(autouse=True)
def nothing_kept():
    load_images.cache_clear()


def picture(value: int, mode: str = "RGB", size: int = 8, kind: str = "PNG") -> bytes:
    """A picture whose top left pixel is brighter than the rest."""
    image = Image.new(mode, (size, size), value if mode == "L" else (value, 0, 255 - value))
    image.putpixel((0, 0), 255 if mode == "L" else (255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def folder(place: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def idx(data: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4) for size in data.shape)
    return bytes((0, 0, 8, data.ndim)) + shape + data.astype(np.uint8).tobytes()


def idx_pair(place: Path, stem: str, count: int, classes: int = 10, zipped: bool = False) -> Path:
    """Images whose every pixel is their number, and their labels."""
    place.mkdir(parents=True, exist_ok=True)
    x = np.arange(count, dtype=np.uint8)[:, None, None].repeat(9, 1).repeat(10, 2)
    for name, data in (("images-idx3", x), ("labels-idx1", np.arange(count) % classes)):
        file = place / f"{stem}-{name}-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(idx(data)) if zipped else idx(data))
    return place / f"{stem}-images-idx3-ubyte{'.gz' if zipped else ''}"


def normal(data: Images) -> None:
    """Channels have mean 0 and variance 1 over the training part."""
    std, mean = torch.std_mean(data.x_train.double(), dim=(0, 2, 3))
    assert mean.abs().max() < 1e-5
    assert (std - 1).abs().max() < 1e-5


def message(path: Path | str) -> str:
    """The one line that a path is refused with."""
    load_images.cache_clear()
    with pytest.raises(UserError) as error:
        load_images(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_digits_where_nothing_is_named():
    data = load_images()
    assert (data.name, data.classes) == ("digits", tuple("0123456789"))
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert len(data.y_train) + len(data.y_test) == 1797
    normal(data)


@pytest.mark.parametrize("zipped", [False, True])
def test_class_folders(tmp_path: Path, zipped: bool):
    names = {f"{kind}/{i}.png": picture(10 * i + k) for k, kind in enumerate(("cat", "ant")) for i in range(6)}
    place = folder(tmp_path / "animals", names | {"cat/notes.txt": b"no picture", "__MACOSX/cat/._0.png": b"\0"})
    if zipped:
        with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
            for file in place.rglob("*.*"):
                archive.write(file, f"all/{file.relative_to(place).as_posix()}")
        place = place.with_suffix(".zip")
    data = load_images(str(place))
    assert (data.name, data.classes) == ("animals", ("ant", "cat"))
    # Of the six of each class, in order, the first and the sixth are for testing.
    assert data.y_train.tolist() == [0] * 4 + [1] * 4
    assert data.y_test.tolist() == [0, 0, 1, 1]
    assert data.split == "every fifth of 12 images of each class for testing"
    normal(data)
    # Undoing the normalisation gives the bytes back: red of the first test ant is 1, of the sixth 51.
    red = data.x_test[:2, 0, 4, 4]
    pixels = np.array([np.asarray(Image.open(io.BytesIO(names[f"ant/{i}.png"])))[..., 0] for i in range(1, 5)])
    cats = np.array([np.asarray(Image.open(io.BytesIO(names[f"cat/{i}.png"])))[..., 0] for i in range(1, 5)])
    both = np.concatenate([pixels, cats]).astype(float)
    assert red.tolist() == pytest.approx(((np.array([1, 51]) - both.mean()) / both.std(ddof=1)).tolist(), abs=1e-4)
    # The bright corner is at the top left in every channel.
    assert (data.x_test[:, :2, 0, 0] > data.x_test[:, :2, 1, 1]).all()


def test_jpeg_and_grey_pictures(tmp_path: Path):
    names = {f"{k}/{i}.JPG": picture(40 * i, "L", 9, "JPEG") for k in "ab" for i in range(3)}
    assert load_images(str(folder(tmp_path, names))).x_train.shape == (4, 1, 9, 9)


def test_folders_train_and_test_are_the_split(tmp_path: Path):
    names = {f"{part}/{k}/{i}.png": picture(i) for part in ("train", "test") for k in "ab" for i in range(3)}
    del names["test/b/2.png"]
    data = load_images(str(folder(tmp_path, names)))
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1])
    assert data.split == "the folders train and test"


def test_cifar_batches(tmp_path: Path):
    rows = np.zeros((20, 3073), np.uint8)
    rows[:, 0] = np.arange(20) % 10
    rows[:, 1] = 200  # red, top left
    rows[:, 1 + 1024 + 33] = 100  # green, second row and column
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        rows[: 10 if name == "test_batch.bin" else 20].tofile(tmp_path / name)
    data = load_images(str(tmp_path))
    assert (data.name, data.classes, data.split) == ("cifar-10", CIFAR, "the official split")
    assert (data.x_train.shape, data.x_test.shape) == ((40, 3, 32, 32), (10, 3, 32, 32))
    assert data.y_test.tolist() == list(range(10))
    assert data.x_train[0, 0].argmax() == 0
    assert data.x_train[0, 1].argmax() == 33
    assert data.x_train[:, 2].abs().max() == 0  # a channel of one value
    (tmp_path / "test_batch.bin").unlink()
    assert "data_batch_1.bin to data_batch_5.bin and test_batch.bin" in message(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool):
    idx_pair(tmp_path / "fashion", "train", 40, zipped=zipped)
    alone = idx_pair(tmp_path / "fashion", "t10k", 20, zipped=zipped)
    data = load_images(str(tmp_path / "fashion"))
    assert (data.name, data.classes, data.split) == ("fashion-mnist", FASHION, "the official split")
    assert (data.x_train.shape, data.x_test.shape) == ((40, 1, 9, 10), (20, 1, 9, 10))
    normal(data)
    one = load_images(str(alone))
    assert (len(one.y_train), len(one.y_test)) == (10, 10)
    assert one.split == "every fifth of 20 images of each class for testing"


def test_idx_files_of_other_classes(tmp_path: Path):
    data = load_images(str(idx_pair(tmp_path / "mine", "t10k", 30, classes=3)))
    assert (data.name, data.classes) == ("mnist", ("0", "1", "2"))


@pytest.mark.skipif(not SHARED.exists(), reason="needs the image files of ../shared/data")
def test_the_real_files():
    cifar = load_images(str(SHARED / "cifar10_test_jpg.zip"))
    assert (cifar.classes, cifar.x_train.shape) == (CIFAR, (8000, 3, 32, 32))
    assert cifar.y_test.bincount().tolist() == [200] * 10
    fashion = load_images(str(SHARED / "fashion-mnist-t10k-images-idx3-ubyte.gz"))
    assert (fashion.name, fashion.x_test.shape) == ("fashion-mnist", (2000, 1, 28, 28))


def test_nothing_there(tmp_path: Path):
    assert "no such file or folder; --images wants" in message(tmp_path / "none")
    assert "no labelled images there" in message(folder(tmp_path, {"a.txt": b"x"}) / "a.txt")
    assert "at least two classes" in message(tmp_path)


def test_pictures_that_cannot_be(tmp_path: Path):
    one = folder(tmp_path / "one", {"a/0.png": picture(1), "a/1.png": picture(2)})
    assert "at least two classes" in message(one)
    sizes = folder(tmp_path / "sizes", {"a/0.png": picture(1), "b/0.png": picture(1, size=9)})
    assert "different sizes or colours" in message(sizes)
    broken = folder(tmp_path / "broken", {"a/0.png": picture(1), "b/0.png": picture(1)[:60]})
    assert "cannot be read as images" in message(broken)
    few = folder(tmp_path / "few", {"a/0.png": picture(1), "b/0.png": picture(1), "b/1.png": picture(2)})
    assert "the training images are not of 2 classes" in message(few)
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK no")
    assert "cannot be read as images" in message(bad)


def test_idx_files_that_cannot_be(tmp_path: Path):
    file = idx_pair(tmp_path / "labels", "t10k", 20)
    labels = file.with_name("t10k-labels-idx1-ubyte")
    labels.write_bytes(idx(np.arange(7)))
    assert "20 images, and 7 labels" in message(file)
    labels.write_bytes(idx(np.full(20, 0)))
    assert "one class" in message(file)
    labels.write_bytes(file.read_bytes())
    assert "labels-idx1-ubyte: not an IDX file of bytes in 1 dimension" in message(file)
    labels.unlink()
    assert "t10k-labels-idx1-ubyte, are not beside it" in message(file)
    cut = idx_pair(tmp_path / "cut", "t10k", 20)
    cut.write_bytes(cut.read_bytes()[:-100])
    assert "cut short, 1,700 of 1,800 bytes" in message(cut)
    cut.write_bytes(b"")
    assert "not an IDX file of bytes in 3 dimensions" in message(cut)
    zipped = idx_pair(tmp_path / "zipped", "t10k", 20, zipped=True)
    zipped.write_bytes(zipped.read_bytes()[:-12])
    assert "cannot be read as images" in message(zipped)
    wild = idx_pair(tmp_path / "fashion", "t10k", 20, classes=12)
    assert "not of 10 classes" in message(wild)


def test_idx_files_of_two_data_sets(tmp_path: Path):
    idx_pair(tmp_path, "fashion-t10k", 20)
    idx_pair(tmp_path, "mnist-t10k", 20)
    assert re.search(r"more than one data set \(fashion-.*, mnist-.*\); name one of them", message(tmp_path))
    idx_pair(tmp_path / "two", "train", 20)
    other = tmp_path / "two" / "t10k-images-idx3-ubyte"
    idx_pair(tmp_path / "two", "t10k", 20)
    other.write_bytes(idx(np.zeros((20, 5, 5))))
    assert "training images of (1, 9, 10), test images of (1, 5, 5)" in message(tmp_path / "two")
