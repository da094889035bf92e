"""Caches carried to S3 and back, over a connection that fails, and through the verbs as typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.errors import CacheNotFoundError
from pipeline.store import open_cache, pull, push, verify
from stages.cli import main
from tests.store.flaky import QUICK, s3_behind_a_proxy
from tests.store.small import LAYOUT, files_of, logits_of


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[Any, dict[str, Any]]]:
    """An S3 behind a proxy that can make trouble: the proxy, and the options that reach it."""
    with s3_behind_a_proxy() as found:
        yield found


def test_s3_there_and_back(folder: Path, s3: Any, tmp_path: Path) -> None:
    _, options = s3
    push(folder, "s3://bucket/plain", options=options)
    cache = open_cache("s3://bucket/plain", **options)
    assert cache.digest == open_cache(folder).digest
    assert np.array_equal(cache.decode(cache.read_part(1)).logits, logits_of(LAYOUT.parts[1]))
    pull("s3://bucket/plain", tmp_path / "b", options=options)
    assert files_of(tmp_path / "b") == files_of(folder)
    with pytest.raises(CacheNotFoundError, match="Make the bucket"):
        push(folder, "s3://no-such-bucket/cache", options=options)


def test_s3_over_a_connection_that_fails(
    folder: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, options = s3
    # s3fs and botocore have patience of their own, which would hide ours.
    hasty = {**options, "config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 5}}
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    proxy.trouble = True
    try:
        sent = push(folder, "s3://bucket/flaky", options=hasty, patience=QUICK, workers=8)
        fetched = pull("s3://bucket/flaky", tmp_path / "b", options=hasty, patience=QUICK, workers=8)
    finally:
        proxy.trouble = False
    assert files_of(tmp_path / "b") == files_of(folder) and verify(open_cache(tmp_path / "b")).ok
    bucket = fsspec.filesystem("s3", **options)
    there = {path.removeprefix("bucket/flaky/"): bucket.cat_file(path) for path in bucket.find("bucket/flaky")}
    assert there == files_of(folder)
    assert sent.retries > 0 and fetched.retries > 0 and all(proxy.counts), proxy.counts


def test_the_verbs_as_typed(folder: Path, s3: Any, tmp_path: Path) -> None:
    _, options = s3
    given = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]

    def cache(*words: str) -> Any:
        return CliRunner().invoke(main, ["cache", *words])

    sent = cache("push", str(folder), "s3://bucket/typed", *given)
    assert sent.exit_code == 0 and "bytes sent" in sent.stdout and sent.stdout.count("\n") == 1
    few = cache("pull", "s3://bucket/typed", str(tmp_path / "b"), *given, "--parts", "0:1", "--labels-only", "--json")
    assert few.exit_code == 0 and json.loads(few.stdout)["complete"] is False
    assert "is missing" in cache("verify", str(tmp_path / "b")).stderr
    assert cache("pull", "s3://bucket/typed", str(tmp_path / "b"), *given).exit_code == 0
    assert files_of(tmp_path / "b") == files_of(folder)
    both = cache("pull", "s3://bucket/typed", str(tmp_path / "c"), "--labels-only", "--features", "block.1")
    assert both.exit_code == 2 and "--labels-only" in both.stderr
    listed = cache("--help").stdout
    assert "push" in listed and "pull" in listed
