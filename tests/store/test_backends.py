"""Both backends under one contract."""

from __future__ import annotations

from tests.contracts.backends import BackendContract
from tests.contracts.uneven import UnevenContract


class TestZarr(BackendContract):
    store = "zarr"


class TestParquet(BackendContract):
    store = "parquet"


class TestUnevenZarr(UnevenContract):
    store = "zarr"


class TestUnevenParquet(UnevenContract):
    store = "parquet"
