from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import images as module
from pipeline.datasets import load_dataset
from pipeline.datasets.pictures import Pictures
from pipeline.errors import ConfigError, DataError
from pipeline.views import Views, load_inputs

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _own_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))


def picture(path: Path, value: int = 100, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(value)
    pixels = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, name in enumerate(["cat/b.png", "cat/a.jpg", "ant/x.PNG", "dog/deep/y.png"]):
        picture(tmp_path / "data" / name, n)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "data" / "cat" / ".hidden.png").write_text("not a picture")
    (tmp_path / "data" / ".git").mkdir()
    return tmp_path / "data"


def test_a_class_per_subfolder(folder: Path) -> None:
    dataset = load_dataset(f"images:{folder}", {"size": 8})
    assert dataset.ids == ["ant/x.PNG", "cat/a.jpg", "cat/b.png", "dog/deep/y.png"]
    assert dataset.classes == ("ant", "cat", "dog") and dataset.labels.tolist() == [0, 1, 1, 2]
    assert dataset.read(2) == (folder / "cat/b.png").read_bytes()
    assert dataset.load(0).shape == (3, 8, 11) and dataset.input_shape == (3, 8, 8)
    x = dataset.prepare(dataset.load(0))
    assert x.shape == (3, 8, 8) and 0 <= float(x.min()) <= float(x.max()) <= 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_loader_workers_decode_the_same_pixels(folder: Path) -> None:
    dataset = load_dataset(f"images:{folder}", {"size": 8, "normalise": "half"})
    entries = [(row, 0) for row in range(len(dataset))]
    assert torch.equal(load_inputs(dataset, Views(), entries), load_inputs(dataset, Views(), entries, workers=2))


def test_split_folders_are_kept_and_validation_is_cut_from_train(tmp_path: Path) -> None:
    for n in range(30):
        picture(tmp_path / "d" / "train" / "ab"[n % 2] / f"{n}.png", n, (4, 4))
    for n in range(3):
        picture(tmp_path / "d" / "test" / "c" / f"{n}.png", n, (4, 4))
    dataset = load_dataset(f"images:{tmp_path / 'd'}", {"size": 4})
    assert dataset.classes == ("a", "b", "c") and dataset.ids[0] == "test/c/0.png"
    assert len(dataset.rows("test")) == 3
    assert 0 < len(dataset.rows("validation")) < 15
    picture(tmp_path / "d" / "val" / "a" / "0.png", 0, (4, 4))
    again = load_dataset(f"images:{tmp_path / 'd'}", {"size": 4})
    assert [len(again.rows(s)) for s in ("train", "validation", "test")] == [30, 1, 3]


def test_the_declared_preprocessing_says_all_of_it(folder: Path) -> None:
    options = {"size": 4, "resize": 6, "mean": "0.5/0.4/0.3", "std": 0.25}
    dataset = load_dataset(f"images:{folder}", options)
    assert dataset.preprocessing == (
        "RGB, shorter side resized to 6 (Pillow, bilinear), divided by 255, centre crop 4, mean 0.5/0.4/0.3, std 0.25"
    )
    seen, x = dataset.load(1), dataset.prepare(dataset.load(1))
    expected = (seen[:, 1:5, 2:6] - torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / 0.25
    assert torch.equal(x, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_is_decoded(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / "p.tif", 3, (6, 5), mode)
    for channels in (1, 3):
        x = Pictures.make(size=5, channels=channels).decode(path.read_bytes(), str(path))
        assert x.shape == (channels, 5, 6) and x.dtype == torch.float32


def test_wrong_options_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Pictures.make(size=0, channels=2, mean="x", std=0.0, normalise="images")
    assert len(caught.value.problems) == 5
    assert "none, half, imagenet" in str(caught.value)


def test_unknown_options_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'sise'; it takes size, resize"):
        load_dataset(f"images:{folder}", {"sise": 8})


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0\0"])
def test_a_corrupt_picture_is_named(folder: Path, content: bytes) -> None:
    broken = folder / "cat" / "b.png"
    broken.write_bytes(content)
    dataset = load_dataset(f"images:{folder}", {"size": 8})
    with pytest.raises(DataError, match=r"cat/b\.png should be a picture and cannot be decoded"):
        dataset.load(2)


def test_a_truncated_picture_and_one_that_has_gone(folder: Path) -> None:
    broken = folder / "cat" / "a.jpg"
    dataset = load_dataset(f"images:{folder}", {"size": 8})
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.jpg"):
        dataset.load(1)
    broken.unlink()
    with pytest.raises(DataError, match=r"a\.jpg cannot be read: No such file"):
        dataset.load(1)


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_dataset(f"images:{tmp_path / 'nowhere'}")
    picture(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match=r"is empty: it should hold pictures as CLASS/picture\.png"):
        load_dataset(f"images:{tmp_path / 'flat'}")
    (tmp_path / "split" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train/CLASS/picture\.png"):
        load_dataset(f"images:{tmp_path / 'split'}")


def test_a_view_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(DataError, match="at least 8 pixels on each side"):
        Pictures.make(size=8).prepare(torch.zeros(3, 7, 9))


def aged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the files were written long ago."""
    now = time.time_ns()
    monkeypatch.setattr(module.time, "time_ns", lambda: now + 10_000_000_000)


def test_digests_are_remembered_outside_the_data_and_follow_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(folder, monkeypatch)
    before = sorted(p for p in folder.rglob("*"))
    first = load_dataset(f"images:{folder}", {"size": 8})
    digest = first.digest()
    assert sorted(p for p in folder.rglob("*")) == before
    assert len(list((tmp_path / "memo/softlabels/digests").glob("*.tsv"))) == 1

    reads: list[int] = []
    read = module.Images.read
    monkeypatch.setattr(module.Images, "read", lambda self, row: reads.append(row) or read(self, row))
    second = module.Images(str(folder), size=8)
    assert second.digest() == digest and not reads

    picture(folder / "cat" / "b.png", 77)
    changed = module.Images(str(folder), size=8)
    assert changed.digest() != digest and reads == [2]


def test_a_file_that_has_just_changed_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    load_dataset(f"images:{folder}", {"size": 8}).digest()
    assert not list(tmp_path.glob("memo/softlabels/digests/*.tsv"))


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"only one field\n", b"a\tb\tc\td\n"])
def test_a_damaged_memo_costs_time_only(
    folder: Path, tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(folder, monkeypatch)
    digest = load_dataset(f"images:{folder}", {"size": 8}).digest()
    (memo,) = tmp_path.glob("memo/softlabels/digests/*.tsv")
    memo.write_bytes(damage)
    assert module.Images(str(folder), size=8).digest() == digest


def test_a_home_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(folder, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_dataset(f"images:{folder}", {"size": 8}).digest()) == 64


def test_linked_class_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "z.png", 5)
    os.symlink(tmp_path / "elsewhere", folder / "bee")
    os.symlink(folder, folder / "cat" / "loop")
    dataset = load_dataset(f"images:{folder}", {"size": 8})
    assert dataset.ids == ["ant/x.PNG", "bee/z.png", "cat/a.jpg", "cat/b.png", "dog/deep/y.png"]


def test_a_link_to_a_folder_whose_name_begins_alike_is_no_loop(tmp_path: Path) -> None:
    picture(tmp_path / "cats" / "z.png", 5)
    picture(tmp_path / "cats-and-dogs" / "dog" / "y.png", 6)
    os.symlink(tmp_path / "cats", tmp_path / "cats-and-dogs" / "cat")
    dataset = load_dataset(f"images:{tmp_path / 'cats-and-dogs'}", {"size": 8})
    assert dataset.ids == ["cat/z.png", "dog/y.png"]
