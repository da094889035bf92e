"""Both backends under one contract."""

from __future__ import annotations

from tests.contracts.backends import BackendContract


class TestZarr(BackendContract):
    store = "zarr"


class TestParquet(BackendContract):
    store = "parquet"
