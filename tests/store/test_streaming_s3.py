"""Training straight from S3, over a connection that fails: the same batches and weights, the first of them early."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.models import build_model, save_weights
from pipeline.sources import CachedLabels
from pipeline.store import Cache, open_cache, push
from pipeline.store.remote import PatientFiles
from pipeline.training import TrainConfig
from pipeline.training import run as train
from tests.store.flaky import QUICK, s3_behind_a_proxy

PARTS, PART = 12, 16
URL = "s3://bucket/small"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, and its cache of top-k labels in 12 parts of several files each."""
    folder = tmp_path_factory.mktemp("streaming")
    random = np.random.default_rng(0)
    split = np.repeat(["train", "validation"], [PARTS * PART, PART])
    x = random.normal(size=(len(split), 1, 4, 4)).astype(np.float32)
    classes = np.array([f"c{n}" for n in range(6)])
    np.savez(folder / "data.npz", x=x, y=np.arange(len(split)) % 6, split=split, classes=classes)
    torch.manual_seed(0)
    save_weights(folder / "teacher.safetensors", build_model("mlp-8", {}, classes=6, input_shape=(1, 4, 4)), {})
    dump(
        DumpConfig(
            data=f"arrays:{folder / 'data.npz'}",
            teacher="mlp-8",
            weights=folder / "teacher.safetensors",
            out=folder / "cache",
            encoding="topk",
            k=2,
            temperature=(4.0,),
            part_size=PART,
        )
    )
    return folder


@pytest.fixture(scope="module")
def s3(home: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The proxy, and options under which only this project's patience is at work; the cache lies at ``URL``."""
    with s3_behind_a_proxy() as (proxy, options):
        push(home / "cache", URL, options=options)
        hasty = {**options, "config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 5}}
        fsspec.filesystem("s3", **hasty).connect()  # botocore writes into what it is given
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("s3fs.S3FileSystem.retries", 1)
            patch.setattr("pipeline.store.remote.Patience", lambda: QUICK)
            yield proxy, hasty


@pytest.fixture
def proxy(s3: Any) -> Iterator[Any]:
    proxy, _ = s3
    proxy.answered.clear()
    yield proxy
    proxy.trouble, proxy.delay = False, 0.0


def data(home: Path) -> Dataset:
    return load_dataset(f"arrays:{home / 'data.npz'}", {})


def labels_fetched(proxy: Any) -> Counter[str]:
    """How often each file of labels was sent in full."""
    return Counter(path for method, path, _ in list(proxy.answered) if method == "GET" and "/c." in path)


def copies_of(cache: Cache) -> int:
    """How many files have to be fetched: equal ones share a copy."""
    parts = cache.parts_of("train", 0)
    return len({part.files[path].sha256 for part in parts for path in cache.label_paths(part.number).values()})


def batches(source: CachedLabels, epochs: int, **options: Any) -> Iterator[bytes]:
    """Every batch of some epochs, as bytes."""
    order = source.order(24, window=4, **options)
    for epoch in range(epochs):
        with source.stream(order, epoch) as stream:
            for rows, soft in stream:
                tensors: list[torch.Tensor] = []
                soft.map(lambda tensor, tensors=tensors: tensors.append(tensor) or tensor)  # type: ignore[misc]
                yield rows.tobytes() + b"".join(tensor.numpy().tobytes() for tensor in tensors)


@pytest.mark.parametrize(("first", "resident"), [(0, "none"), (1, "none"), (0, "ram")])
def test_epochs_over_a_connection_that_fails_are_those_of_the_local_cache(
    home: Path, s3: Any, proxy: Any, tmp_path: Path, first: int, resident: str
) -> None:
    proxy.trouble = True
    there = open_cache(URL, cache_dir=tmp_path / "copies", **s3[1])
    far = CachedLabels(there, data(home), resident=resident)
    near = CachedLabels(open_cache(home / "cache"), data(home), resident="none")
    assert list(batches(far, 2, first_window=first)) == list(batches(near, 2, first_window=first))
    assert isinstance(there.files._remote, PatientFiles) and there.files._remote.retries > 0  # type: ignore[attr-defined]
    assert len(labels_fetched(proxy)) == copies_of(there)


def test_a_small_folder_of_copies_is_enough_over_a_connection_that_fails(
    home: Path, s3: Any, proxy: Any, tmp_path: Path
) -> None:
    proxy.trouble = True
    near = open_cache(home / "cache")
    part = sum(near.parts[0].files[path].size for path in near.label_paths(0).values())
    there = open_cache(URL, cache_dir=tmp_path / "copies", cache_bytes=3 * part, **s3[1])
    far = CachedLabels(there, data(home), resident="none")
    assert list(batches(far, 2)) == list(batches(CachedLabels(near, data(home), resident="none"), 2))
    held = [path.stat().st_size for path in (tmp_path / "copies").glob("??/*") if path.suffix != ".lock"]
    assert 0 < sum(held) <= 3 * part


def test_a_run_over_a_connection_that_fails_ends_with_the_same_weights(
    home: Path, s3: Any, proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", s3[1])  # as people do who use one endpoint for everything
    proxy.trouble = True
    for name, where in (("far", URL), ("near", str(home / "cache"))):
        train(
            TrainConfig(
                data=f"arrays:{home / 'data.npz'}",
                cache=where,
                cache_dir=tmp_path / "copies" if name == "far" else None,
                student="mlp-4",
                out=tmp_path / name,
                epochs=2,
                batch_size=24,
                window=4,
                first_window=1,
                resident="none",
                device="cpu",
            )
        )
    runs = [{p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.safetensors")} for name in ("far", "near")]
    assert runs[0] and runs[0] == runs[1]
    assert len(labels_fetched(proxy)) > PARTS


@pytest.mark.parametrize(("first", "parts"), [(1, 1), (2, 2), (0, 4)])
def test_the_first_batch_comes_after_the_first_window(
    home: Path, s3: Any, proxy: Any, tmp_path: Path, first: int, parts: int
) -> None:
    there = open_cache(URL, cache_dir=tmp_path / "copies", **s3[1])
    source = CachedLabels(there, data(home), resident="none")
    order = source.order(PART, window=4, first_window=first)
    numbers, rows = next(order.windows(0))
    assert len(numbers) == parts
    proxy.answered.clear()
    proxy.delay = 0.4
    with source.stream(order, 0) as stream:
        got, _ = next(iter(stream))
        fetched = labels_fetched(proxy)
    assert got.tolist() == rows[:PART].tolist()
    assert {int(path.rpartition("/c.")[2].partition(".")[0]) for path in fetched} == set(numbers.tolist())
    assert set(fetched.values()) == {1} and len(fetched) < copies_of(there)


def test_answers_that_take_their_time_are_waited_for_together(home: Path, s3: Any, proxy: Any, tmp_path: Path) -> None:
    there = open_cache(URL, cache_dir=tmp_path / "copies", **s3[1])
    source = CachedLabels(there, data(home), resident="none")
    proxy.delay, busy, most = 0.05, [0], [0]
    real = there.files._remote.blocks  # type: ignore[attr-defined]

    def watched(path: str, size: int) -> Iterator[bytes]:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        yield from real(path, size)
        busy[0] -= 1

    there.files._remote.blocks = watched  # type: ignore[attr-defined]
    assert len(list(batches(source, 1))) == -(-PARTS * PART // 24)
    # The reader may be fetching one that no thread has begun.
    assert 3 <= most[0] <= 5


TWO = """
import sys, hashlib
from pathlib import Path
from pipeline.datasets import load_dataset
from pipeline.sources import CachedLabels
from pipeline.store import open_cache
from tests.store.test_streaming_s3 import batches
home, copies, endpoint = sys.argv[1:]
there = open_cache("s3://bucket/small", cache_dir=copies, endpoint_url=endpoint, key="testing", secret="testing")
source = CachedLabels(there, load_dataset(f"arrays:{home}/data.npz", {}), resident="none")
print("ready", flush=True)
input()
print(hashlib.sha256(b"".join(batches(source, 1))).hexdigest())
"""


def test_two_processes_share_a_folder_and_fetch_each_file_once(home: Path, s3: Any, proxy: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(TWO), str(home), str(tmp_path / "copies"), s3[1]["endpoint_url"]]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    both = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, env=environment) for _ in range(2)]
    for each in both:
        assert each.stdout is not None and each.stdout.readline() == "ready\n", each.communicate()
    proxy.answered.clear()
    proxy.delay = 0.02
    outputs = []
    for each in both:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in both:
        out, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
        outputs.append(out.strip())
    near = CachedLabels(open_cache(home / "cache"), data(home), resident="none")
    assert outputs == [hashlib.sha256(b"".join(batches(near, 1))).hexdigest()] * 2
    fetched = labels_fetched(proxy)
    assert len(fetched) == copies_of(near.cache) and set(fetched.values()) == {1}
    assert not [path for path in (tmp_path / "copies").glob("??/*") if path.suffix in (".partial", ".room")]


def test_the_cache_of_these_tests_has_many_parts(home: Path) -> None:
    cache: Cache = open_cache(home / "cache")
    assert len(cache.parts_of("train", 0)) == PARTS and len(cache.label_paths(0)) > 1
