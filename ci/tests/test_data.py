"""Data sets arrive whole, aligned and in the promised form; what is missing is named."""

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import riembn
from riembn.data import Dataset, Datasets, content_digest, datasets, folder_cache, image_folder, load
from riembn.data.from_torchvision import import_torchvision
from riembn.data.published import FASHION_MNIST

PUBLISHED = Path(os.environ.get("RIEMBN_DATA") or Path(__file__).parents[3] / "shared" / "data")


def published(path: str) -> Path:
    if not (PUBLISHED / path).exists():
        pytest.skip(f"no {path} in the folder RIEMBN_DATA names or in ../shared/data")
    return PUBLISHED / path


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# The data set itself


def small_dataset(n: int = 6) -> Dataset:
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4).contiguous()
    return Dataset(images, torch.arange(n), tuple("abcdef"), "small")


@pytest.mark.parametrize("indices", [[4, 0, 4], torch.tensor([4, 0, 4]), slice(1, None, 2), []])
def test_subset_keeps_images_and_labels_together(indices: Any) -> None:
    whole = small_dataset()
    part = whole.subset(indices)
    expected = list(range(6))[indices] if isinstance(indices, slice) else list(indices)
    assert part.labels.tolist() == part.images[:, 0, 0, 0].tolist() == [int(i) for i in expected]
    assert len(part) == len(expected)
    assert (part.classes, part.name) == (whole.classes, whole.name)


def test_to_moves_both_tensors() -> None:
    moved = small_dataset().to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    here = small_dataset()
    assert here.to("cpu").images.data_ptr() == here.images.data_ptr()


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), "images is torch.float32 .*; give torch.uint8"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"shape \(2, 4, 4\); give torch.uint8 with 4"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), "labels is torch.float32"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), "2 images and 3 labels"),
    ],
)
def test_dataset_refuses_other_tensors(images: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Dataset(images, labels, ("a",), "bad")


# Digits


def test_digits_are_scikit_learns_in_a_fixed_split() -> None:
    from sklearn.datasets import load_digits

    train, test = load("digits")
    assert train.images.shape == (1442, 1, 8, 8) and test.images.shape == (355, 1, 8, 8)
    assert train.classes == tuple("0123456789") and train.name == "digits"
    source = load_digits()
    for digit in range(10):
        of_class = source.images[source.target == digit]
        both = torch.cat([part.images[part.labels == digit] for part in (train, test)])
        assert (test.labels == digit).sum() == len(of_class) // 5
        # Scaled back, the test set follows the training set in file order.
        np.testing.assert_array_equal((both[:, 0].double() * 16 / 255).round().numpy(), of_class)
    assert train.images.max() == 255 and train.images.min() == 0


# Fashion-MNIST


def test_fashion_mnist_has_the_files_own_bytes() -> None:
    raw = published("FashionMNIST/raw")
    parts = load("fashion-mnist", PUBLISHED)
    for part, stem, n in zip(parts, ("train", "t10k"), (60_000, 10_000), strict=True):
        assert part.images.shape == (n, 1, 28, 28)
        assert part.images.numpy().tobytes() == (raw / f"{stem}-images-idx3-ubyte").read_bytes()[16:]
        assert part.labels.byte().numpy().tobytes() == (raw / f"{stem}-labels-idx1-ubyte").read_bytes()[8:]
        assert part.classes[0] == "T-shirt/top" and len(part.classes) == 10
        assert part.images.is_contiguous()


def write_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, last: int = 1) -> Path:
    """Five images a part; the package is told their md5."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = pixels(5, 28, 28), bytes([0, 9, 3, 3, last])
    for stem in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (5, 28, 28))
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (5).to_bytes(4, "big") + labels)
    for file in FASHION_MNIST:
        monkeypatch.setitem(FASHION_MNIST, file, md5(raw / file))
    return raw


def test_folder_is_the_argument_then_the_environment_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    places = {"argument": tmp_path / "a", "environment": tmp_path / "e", "home": tmp_path / "h/.cache/riembn"}
    monkeypatch.setenv("HOME", str(tmp_path / "h"))
    monkeypatch.setenv("RIEMBN_DATA", str(places["environment"]))
    write_fashion_mnist(places["argument"], monkeypatch, last=0)
    assert load("fashion-mnist", places["argument"])[1].labels[-1] == 0
    write_fashion_mnist(places["environment"], monkeypatch, last=1)
    assert load("fashion-mnist")[1].labels[-1] == 1
    monkeypatch.setenv("RIEMBN_DATA", "")
    write_fashion_mnist(places["home"], monkeypatch, last=2)
    assert load("fashion-mnist")[1].labels[-1] == 2


def two_bytes_flipped(content: bytes) -> bytes:
    return content[:-2] + bytes(255 - byte for byte in content[-2:])


@pytest.mark.parametrize(
    "damage, words",
    [
        (two_bytes_flipped, "is damaged or another data set's"),
        (lambda content: content[:-2], "is damaged or another data set's"),
        (lambda content: b"", "is empty"),
        (lambda content: b"<!DOCTYPE html><title>404</title>", "is a web page"),
    ],
)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_file_is_named_and_not_trained_on(
    damage: Callable[[bytes], bytes],
    words: str,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
) -> None:
    raw = write_fashion_mnist(tmp_path, monkeypatch)
    load("fashion-mnist", tmp_path)
    (raw / file).write_bytes(damage((raw / file).read_bytes()))
    with pytest.raises(ValueError, match=rf"{file} {words} \(md5 .*; remove it") as caught:
        load("fashion-mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_archive_is_named(tmp_path: Path, no_network: None) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz is a web page"):
        load("fashion-mnist", tmp_path)


# CIFAR and SVHN in their official formats


def write_cifar(root: Path, class_name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Four images a file, as the official pickles hold them; torchvision is told their md5."""
    cifar = getattr(import_torchvision().datasets, class_name)
    folder = root / cifar.base_folder
    folder.mkdir(parents=True)
    key = "labels" if class_name == "CIFAR10" else "fine_labels"
    classes = [f"class {i}" for i in range(10 if class_name == "CIFAR10" else 100)]
    content: dict[str, Any] = {"classes": classes}

    def write(filename: str, entry: dict[str, Any]) -> str:
        (folder / filename).write_bytes(pickle.dumps(entry, protocol=2))
        return md5(folder / filename)

    for attribute in ("train_list", "test_list"):
        images, labels, sums = [], [], []
        for i, (filename, _) in enumerate(getattr(cifar, attribute)):
            data = pixels(4, 3 * 32 * 32, seed=10 * len(attribute) + i)
            entry = {"data": data, key: [i, 9, 2, 0], "batch_label": filename, "filenames": ["x"] * 4}
            sums.append([filename, write(filename, entry)])
            images.append(data)
            labels += entry[key]
        content[attribute] = np.concatenate(images).reshape(-1, 3, 32, 32), labels
        monkeypatch.setattr(cifar, attribute, sums)
    meta = {**cifar.meta, "md5": write(cifar.meta["filename"], {cifar.meta["key"]: classes})}
    monkeypatch.setattr(cifar, "meta", meta)
    return content


@pytest.mark.parametrize("name, class_name", [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_keeps_pixels_labels_and_class_names(
    name: str, class_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    content = write_cifar(tmp_path, class_name, monkeypatch)
    for part, attribute in zip(load(name, tmp_path), ("train_list", "test_list"), strict=True):
        images, labels = content[attribute]
        np.testing.assert_array_equal(part.images.numpy(), images)
        assert part.labels.tolist() == labels
        assert part.classes == tuple(content["classes"]) and part.name == name
        assert part.images.is_contiguous()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which this machine serves it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    served = tmp_path / "server"
    served.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield served, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")  # of torchvision
def test_download_is_checked_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[Path, str]
) -> None:
    served, address = server
    cifar = import_torchvision().datasets.CIFAR10
    content = write_cifar(tmp_path, "CIFAR10", monkeypatch)
    archive = served / cifar.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / cifar.base_folder, cifar.base_folder)
    monkeypatch.setattr(cifar, "url", f"{address}/{cifar.filename}")
    target = tmp_path / "target"
    # The archive's md5 is not the official one.
    with pytest.raises(FileNotFoundError, match="not found or corrupted"):
        load("cifar10", target)
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive))
    train, _ = load("cifar10", target)
    np.testing.assert_array_equal(train.images.numpy(), content["train_list"][0])


@pytest.mark.parametrize("file", ["cifar-10-batches-py/data_batch_3", "cifar-10-batches-py/batches.meta"])
def test_changed_file_is_refused(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    with (tmp_path / file).open("ab") as opened:
        opened.write(b"x")
    with pytest.raises(ValueError, match=rf"load\('cifar10'\): .*{file} is damaged"):
        load("cifar10", tmp_path)


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    from scipy.io import savemat

    svhn = import_torchvision().datasets.SVHN
    content, listed = {}, {}
    for i, (split, (url, filename, _)) in enumerate(svhn.split_list.items()):
        images, labels = pixels(3 + i, 3, 32, 32, seed=i), [10, 1, 9, 5, 10][: 3 + i]
        # The files hold (height, width, channel, n), and 10 for the digit 0.
        savemat(root / filename, {"X": images.transpose(2, 3, 1, 0), "y": np.uint8(labels)[:, None]})
        listed[split] = [url, filename, md5(root / filename)]
        content[split] = images, [label % 10 for label in labels]
    monkeypatch.setattr(svhn, "split_list", listed)
    return content


def test_svhn_trains_on_train_and_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    content = write_svhn(tmp_path, monkeypatch)
    train, test = load("svhn", tmp_path)
    first, second = content["train"], content["extra"]
    np.testing.assert_array_equal(train.images.numpy(), np.concatenate([first[0], second[0]]))
    assert train.labels.tolist() == first[1] + second[1]
    np.testing.assert_array_equal(test.images.numpy(), content["test"][0])
    assert test.labels.tolist() == content["test"][1]
    assert train.images.is_contiguous() and test.images.is_contiguous()
    assert train.classes == tuple("0123456789")
    (tmp_path / "extra_32x32.mat").write_bytes(b"")
    with pytest.raises(ValueError, match="extra_32x32.mat is empty"):
        load("svhn", tmp_path)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("fashion-mnist", "t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "extra_32x32.mat"),
    ],
)
def test_without_network_the_error_names_the_files_and_their_place(
    name: str, wanted: str, tmp_path: Path, no_network: None
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path / "new")
    text = str(caught.value)
    assert wanted in text and str(tmp_path / "new") in text and "RIEMBN_DATA" in text
    assert "network is unreachable" in text and "\n" not in text


def test_folder_that_cannot_be_made_is_reported(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="no usable files in .*file/data"):
        load("cifar10", tmp_path / "file" / "data")


# Image folders


def save(path: Path, array: np.ndarray, **arguments: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **arguments)


def folder(root: Path, shape: tuple[int, ...] = (6, 5, 3)) -> dict[str, np.ndarray]:
    """Two classes, two and one images in train, one in each class of test."""
    names = ["train/cat/b.png", "train/cat/a.png", "train/dog/c.PNG", "test/cat/d.png", "test/dog/e.bmp"]
    arrays = {name: pixels(*shape, seed=i) for i, name in enumerate(names)}
    for name, array in arrays.items():
        save(root / name, array)
    return arrays


def test_image_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    arrays = folder(tmp_path)
    (tmp_path / "train/cat/notes.txt").write_text("passed over")
    (tmp_path / "train/readme.md").write_text("passed over")
    train, test = load(f"imagefolder:{tmp_path}")
    for part, names in (
        (train, ["train/cat/a.png", "train/cat/b.png", "train/dog/c.PNG"]),
        (test, ["test/cat/d.png", "test/dog/e.bmp"]),
    ):
        expected = np.stack([arrays[name] for name in names]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(part.images.numpy(), expected)
    assert train.labels.tolist() == [0, 0, 1] and test.labels.tolist() == [0, 1]
    assert train.classes == test.classes == ("cat", "dog")
    assert train.name == f"imagefolder:{tmp_path}"


def test_gray_images_have_one_channel_unless_one_has_colors(tmp_path: Path) -> None:
    arrays = folder(tmp_path, shape=(6, 5))
    train, test = load(f"imagefolder:{tmp_path}")
    assert train.images.shape == (3, 1, 6, 5) and test.images.shape == (2, 1, 6, 5)
    np.testing.assert_array_equal(test.images[0, 0].numpy(), arrays["test/cat/d.png"])
    save(tmp_path / "test/cat/z.png", pixels(6, 5, 3))
    train, test = load(f"imagefolder:{tmp_path}")
    assert train.images.shape == (3, 3, 6, 5) and test.images.shape == (3, 3, 6, 5)
    for channel in test.images[0].numpy():
        np.testing.assert_array_equal(channel, arrays["test/cat/d.png"])


def test_other_modes_become_colors(tmp_path: Path) -> None:
    arrays = folder(tmp_path)
    color = arrays["train/cat/a.png"]
    save(tmp_path / "train/cat/a.png", np.dstack([color, pixels(6, 5)]))  # RGBA
    flat = np.full((6, 5, 3), (10, 200, 30), np.uint8)
    Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "test/cat/f.gif")
    train, test = load(f"imagefolder:{tmp_path}")
    np.testing.assert_array_equal(train.images[0].numpy(), color.transpose(2, 0, 1))
    np.testing.assert_array_equal(test.images[1].numpy(), flat.transpose(2, 0, 1))


def remove(path: Path) -> None:
    for child in path.iterdir():
        child.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    "damage, kind, words",
    [
        (
            lambda p: [save(p / f"train/dog/{n}.png", pixels(5, 6, 3)) for n in ("y", "x")],
            ValueError,
            "train/dog/x.png is 6x5 pixels and .*train/cat/a.png 5x6",
        ),
        (lambda p: save(p / "test/dog/z.png", pixels(9, 5, 3)), ValueError, "test/dog/z.png is 5x9 pixels"),
        (lambda p: (p / "train/cat/a.png").write_bytes(b"no image"), ValueError, "cat/a.png cannot be read"),
        (
            lambda p: (p / "train/cat/b.png").write_bytes((p / "train/cat/b.png").read_bytes()[:60]),
            ValueError,
            "cat/b.png cannot be read",
        ),
        (
            lambda p: save(p / "train/dog/z.png", pixels(6, 5).astype(np.uint16)),
            ValueError,
            "dog/z.png has Pillow's mode I;16; give images of 8 bits",
        ),
        (lambda p: save(p / "test/emu/z.png", pixels(6, 5, 3)), ValueError, "test/emu has no like in train"),
        (lambda p: (p / "train/emu").mkdir(), ValueError, "train/emu has no images"),
        (
            lambda p: save(p / "train/z.png", pixels(6, 5, 3)),
            ValueError,
            "train/z.png is in no class; move it into",
        ),
        (
            lambda p: [remove(p / "test" / c) for c in ("cat", "dog")],
            FileNotFoundError,
            "no images in .*test;",
        ),
        (
            lambda p: [remove(p / "train" / c) for c in ("cat", "dog")],
            FileNotFoundError,
            "no images in .*train",
        ),
    ],
)
def test_bad_image_folder_is_refused_by_the_name_of_what_is_wrong(
    damage: Callable[[Path], Any], kind: type[Exception], words: str, tmp_path: Path
) -> None:
    folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind, match=words) as caught:
        load(f"imagefolder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_what_other_programs_leave_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    arrays = folder(tmp_path)
    for left in (
        "train/.ipynb_checkpoints/0-checkpoint.png",
        "train/__MACOSX/0.png",
        "train/@eaDir/0.png",
        "train/cat/.thumbnails/0.png",
        "train/cat/@eaDir/a.png/SYNOPHOTO.jpg",
        "test/.DS_Store/0.png",
    ):
        save(tmp_path / left, pixels(2, 2))
    (tmp_path / "train/cat/._a.png").write_bytes(b"resource fork")
    train, test = load(f"imagefolder:{tmp_path}")
    assert train.classes == ("cat", "dog") and len(train) == 3 and len(test) == 2
    np.testing.assert_array_equal(train.images[0].numpy(), arrays["train/cat/a.png"].transpose(2, 0, 1))


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    folder(tmp_path)
    deep = pixels(6, 5, 3, seed=9)
    save(tmp_path / "train/cat/b/deep/0.png", deep)
    (tmp_path / "linked").mkdir()
    save(tmp_path / "linked/1.png", deep)
    (tmp_path / "train/dog/other").symlink_to(tmp_path / "linked")
    train, _ = load(f"imagefolder:{tmp_path}")
    assert train.labels.tolist() == [0, 0, 0, 1, 1]  # a.png, b.png, b/deep/0.png; c.PNG, other/1.png
    for i in (2, 4):
        np.testing.assert_array_equal(train.images[i].numpy(), deep.transpose(2, 0, 1))


def test_digest_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    for place in ("a/data", "b/data", "c/data"):
        folder(tmp_path / place)
    save(tmp_path / "c/data/train/cat/a.png", pixels(6, 5, 3, seed=99))
    a, b, c = (content_digest(f"imagefolder:{tmp_path / place}") for place in ("a/data", "b/data", "c/data"))
    assert a == b != c and len(a or "") == 16
    (tmp_path / "a/data/notes.txt").write_text("not read")
    assert content_digest(f"imagefolder:{tmp_path / 'a/data'}") == a
    (tmp_path / "b/data/test/dog/e.bmp").rename(tmp_path / "b/data/test/dog/f.bmp")
    assert content_digest(f"imagefolder:{tmp_path / 'b/data'}") != a
    assert content_digest("digits") is None
    with pytest.raises(FileNotFoundError, match="no images in"):
        content_digest(f"imagefolder:{tmp_path / 'nowhere'}")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept, here for few files too."""
    monkeypatch.setattr(folder_cache, "FEW", 1)
    monkeypatch.setattr(folder_cache, "_last", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/riembn/imagefolder"


def test_pixels_are_decoded_once_and_anew_when_a_file_changed(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data"
    folder(place)
    calls = []
    decoded = image_folder._decoded
    monkeypatch.setattr(image_folder, "_decoded", lambda files: calls.append(len(files)) or decoded(files))
    first, _ = load(f"imagefolder:{place}")
    again, _ = load(f"imagefolder:{place}")
    assert calls == [5] and torch.equal(first.images, again.images)
    new = pixels(6, 5, 3, seed=77)
    before = (place / "train/cat/a.png").stat()
    save(place / "train/cat/a.png", new)
    os.utime(place / "train/cat/a.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed, _ = load(f"imagefolder:{place}")
    assert calls == [5, 5]
    np.testing.assert_array_equal(changed.images[0].numpy(), new.transpose(2, 0, 1))
    assert len(list(kept.iterdir())) == 2  # one list of files, one file of pixels


def test_what_is_kept_may_be_damaged_or_impossible(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data"
    folder(place)
    first, _ = load(f"imagefolder:{place}")
    digest = content_digest(f"imagefolder:{place}")
    for damage in (b"", b"{", b"\x80\x02.", b"PK\x03\x04"):
        for file in kept.iterdir():
            file.write_bytes(damage)
        folder_cache._last.clear()
        assert content_digest(f"imagefolder:{place}") == digest
        assert torch.equal(load(f"imagefolder:{place}")[0].images, first.images)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert torch.equal(load(f"imagefolder:{place}")[0].images, first.images)


def test_only_changed_files_are_read_for_the_digest(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "data")
    digest = content_digest(f"imagefolder:{tmp_path / 'data'}")
    read: list[Path] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or whole(path))
    assert content_digest(f"imagefolder:{tmp_path / 'data'}") == digest and not read
    folder_cache._last.clear()  # as in the next process
    assert content_digest(f"imagefolder:{tmp_path / 'data'}") == digest and not read
    (tmp_path / "data/test/dog/e.bmp").touch()
    assert content_digest(f"imagefolder:{tmp_path / 'data'}") == digest
    assert [path.name for path in read] == ["e.bmp"]


def test_missing_image_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images in .*nowhere/train; put them there as CLASS/FILE"):
        load(f"imagefolder:{tmp_path / 'nowhere'}")


def test_cifar10_as_jpeg_reads_as_an_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, tmp_path = tmp_path, tmp_path / "cifar10-jpeg"
    with tarfile.open(published("cifar10-jpeg.tar.xz"), "r|xz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(("/0000.jpg", "/0001.jpg")):
                tar.extract(member, tmp_path, filter="data")
    train, test = load(f"imagefolder:{tmp_path}")
    assert train.images.shape == test.images.shape == (20, 3, 32, 32)
    assert train.classes[:2] == ("airplane", "automobile") and len(train.classes) == 10
    assert train.labels.tolist() == test.labels.tolist() == [i // 2 for i in range(20)]
    with Image.open(tmp_path / "train/truck/0001.jpg") as image:
        np.testing.assert_array_equal(train.images[-1].permute(1, 2, 0).numpy(), np.asarray(image))
    # By its name only with the files of the book's runs.
    with pytest.raises(ValueError, match=r"load\('cifar10-jpeg'\): .* holds other files .*imagefolder:PATH\.$"):
        load("cifar10-jpeg", root)
    monkeypatch.setattr("riembn.data.published.CIFAR10_JPEG", content_digest(f"imagefolder:{tmp_path}"))
    named, _ = load("cifar10-jpeg", root)
    assert torch.equal(named.images, train.images) and named.name == "cifar10-jpeg"
    with pytest.raises(FileNotFoundError, match="no images in .*cifar10-jpeg/train"):
        load("cifar10-jpeg", root / "elsewhere")


# Names


@pytest.mark.parametrize("name", ["cifar", "MNIST", "", "imagefolder:", None, 3])
def test_unknown_name_is_refused_with_the_known_ones(name: Any) -> None:
    with pytest.raises(ValueError) as caught:
        load(name)
    text = str(caught.value)
    assert repr(name) in text and "\n" not in text
    for known in ("digits", "fashion-mnist", "cifar10", "cifar10-jpeg", "cifar100", "svhn", "imagefolder:PATH"):
        assert known in text


# A fork's own data sets


@pytest.fixture
def added() -> Iterator[Datasets]:
    yield datasets
    for name in datasets.added:
        del datasets[name]


def test_an_added_data_set_is_loaded_by_its_name_from_the_root(
    added: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = []

    def load_mine(root: Path) -> tuple[Dataset, Dataset]:
        roots.append(root)
        return small_dataset(), small_dataset(3)

    added["my-set"] = load_mine
    added.check("my-set")
    train, test = load("my-set", tmp_path)
    monkeypatch.setenv("RIEMBN_DATA", str(tmp_path / "other"))
    load("my-set")
    assert (len(train), len(test)) == (6, 3) and roots == [tmp_path, tmp_path / "other"]
    assert riembn.datasets is datasets and list(added.added) == ["my-set"]
    assert content_digest("my-set") is None


def labelled(*labels: int, classes: str = "abcdef", side: int = 4) -> Dataset:
    return Dataset(torch.zeros(len(labels), 1, side, side).byte(), torch.tensor(labels).long(), tuple(classes), "x")


@pytest.mark.parametrize(
    "returned, kind, words",
    [
        (lambda root: None, TypeError, r"'mine' came as NoneType; return \(train, test\)"),
        (lambda root: (labelled(0), "x"), TypeError, r"return \(train, test\)"),
        (lambda root: (labelled(0), labelled()), ValueError, "has no images in test"),
        (lambda root: (labelled(0, 6), labelled(0)), ValueError, "labels 0 to 6 in train and 6 classes; .* 0 to 5"),
        (lambda root: (labelled(0), labelled(-1)), ValueError, "labels -1 to -1 in test"),
        (lambda root: (labelled(0), labelled(0, classes="ab")), ValueError, "has classes .* in train"),
        (lambda root: (labelled(0), labelled(0, side=5)), ValueError, r"shape \(1, 4, 4\) in train, \(1, 5, 5\)"),
    ],
)
def test_what_an_added_data_set_returns_is_checked(
    returned: Callable[[Path], Any], kind: type[Exception], words: str, added: Datasets
) -> None:
    added["mine"] = returned
    with pytest.raises(kind, match=words) as caught:
        load("mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, entry, kind", [("cifar10", len, ValueError), ("a:b", len, ValueError), ("a", 3, TypeError)]
)
def test_the_packages_own_names_stay(name: str, entry: Any, kind: type[Exception], added: Datasets) -> None:
    with pytest.raises(kind, match=f"data set.*{name}"):
        added[name] = entry


# Importing torchvision


def test_importing_the_package_loads_no_optional_one() -> None:
    code = (
        "import sys, riembn.data, riembn.models; loaded = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted({'torchvision', 'sklearn', 'scipy', 'PIL'} & loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fake_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (root / "torchvision").mkdir()
    (root / "torchvision" / "__init__.py").write_text(source)
    # Set first, so that the fake is gone afterwards even where the real one was never imported.
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setitem(sys.modules, "torchvision.left_over", SimpleNamespace())


def test_working_torchvision_is_imported_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_called(*_: Any) -> None:
        raise AssertionError("declares operators beside a torchvision that has its own")

    fake_torchvision(tmp_path, monkeypatch, "marker = 1")
    monkeypatch.setattr(torch.library, "Library", not_called)
    assert import_torchvision().marker == 1
    assert "torchvision.left_over" in sys.modules


def test_other_failures_of_torchvision_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torchvision(tmp_path, monkeypatch, "raise RuntimeError('something else')")
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()


def test_missing_torchvision_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r'pip install "riembn\[experiment\]"'):
        import_torchvision()


def test_torchvision_without_its_operators_is_imported(tmp_path: Path) -> None:
    """In a process of its own, because a declared operator stays declared."""
    package = tmp_path / "torchvision"
    package.mkdir()
    rules = "".join(f"torch.library.register_fake('torchvision::{name}')(abs)\n" for name in ("nms", "qnms"))
    (package / "__init__.py").write_text(f"import torch\nfrom . import part\n{rules}")
    (package / "part.py").write_text("")
    code = (
        "from riembn.data.from_torchvision import import_torchvision as get\n"
        "first = get(); assert first is get() and first.part is not None\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
