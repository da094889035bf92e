"""Reference files: read as the cache they refer to, by us and by stock fsspec and zarr; few bytes for one row."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encodings import Dense, TopK
from pipeline.errors import CacheCorruptError, CacheError, CacheNotFoundError, ConfigError, SoftlabelsError
from pipeline.store import Cache, CacheWriter, IndexRows, Layout, open_cache, pull, push, verify
from pipeline.store.references import ReferencedFiles, is_reference, parse, to_json
from stages.cli import main
from tests.store.flaky import QUICK
from tests.store.small import LAYOUT, files_of, identity_of, logits_of, small_cache

WIDE = 1000


class Ranges(BaseHTTPRequestHandler):
    """A web server over ``server.folder`` that knows ranges, counts the bytes of bodies, and fails when told to."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        server: Any = self.server
        path = server.folder / self.path.lstrip("/")
        if server.failing > 0:
            server.failing -= 1
            return self._answer(503, b"")
        if not path.is_file():
            return self._answer(404, b"")
        data, status = path.read_bytes(), 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if server.ranges else None
        if wanted:
            first, last = wanted.groups()
            piece = data[int(first) : int(last) + 1 if last else None] if first else data[-int(last) :]
            data, status = piece, 206
        if self.command == "GET":
            server.requests.append((path.name, len(data)))
        return self._answer(status, data)

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")  # type: ignore[attr-defined]
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Any]:
    """A web server over a folder, with the ``requests`` that it answered: names and bytes of bodies."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    server.daemon_threads = True
    server.folder, server.requests, server.failing, server.ranges = tmp_path / "web", [], 0, True
    server.folder.mkdir()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()


def scatter(folder: Path, store: Path, base: str) -> dict[str, str]:
    """The files of a cache under meaningless names in ``store``, as DVC keeps them; path -> URL under ``base``."""
    urls = {}
    for number, (path, data) in enumerate(files_of(folder).items()):
        place = store / "files" / f"{number:02x}" / f"{number * 7919:030x}"
        place.parent.mkdir(parents=True)
        place.write_bytes(data)
        urls[path] = f"{base}/{place.relative_to(store).as_posix()}"
    return urls


def refer(folder: Path, store: Path, base: str, out: Path) -> Path:
    """A reference file ``out`` for the cache at ``folder``, scattered in ``store``."""
    out.write_bytes(to_json(scatter(folder, store, base)))
    return out


def wide_cache(folder: Path, encoding: Any = None) -> Cache:
    """A cache of 1,000 classes whose shards hold many chunks: 512 rows in a part, 64 of float32 in a chunk."""
    encoding, layout = encoding or Dense(), Layout.of({"train": (1024, 1)}, part_size=512)
    identity = {**identity_of(encoding, "zarr", layout)}
    writer = CacheWriter(folder, layout, encoding, classes=WIDE, store="zarr", features={}, identity=identity["digest"])
    for part in layout.parts:
        logits = logits_of(part, WIDE)
        arrays = encoding.encode(logits)
        ids = [f"train/{n}" for n in range(part.first, part.first + part.entries)]
        zeros = np.zeros(part.entries, np.int64)
        rows = IndexRows(ids, 0, "train", zeros, zeros, ["ab" * 32] * part.entries)
        writer.write_part(part, arrays, rows, {}, {"bound": encoding.bound(arrays, WIDE)})
    writer.finalise({"identity": identity, "class_names": [], "fidelity": {}})
    return open_cache(folder)


def test_the_file_stands_for_the_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    out = refer(folder, tmp_path / "store", f"file://{tmp_path}/store", tmp_path / "small.refs.json")
    for address in (out, f"file://{out}"):
        cache = open_cache(address, cache_dir=tmp_path / "copies")
        assert cache.digest == open_cache(folder).digest and cache.address == str(address)
        assert np.array_equal(cache.decode(cache.read_part(1)).logits, logits_of(LAYOUT.parts[1]))
        report = verify(cache)
        assert report.ok and not report.unlisted and report.files == len(files_of(folder))
    assert not (tmp_path / "copies").exists()  # they are on this disk already
    said = CliRunner().invoke(main, ["cache", "inspect", str(out)])
    assert said.exit_code == 0 and str(out) in said.stdout


def test_a_folder_of_that_name_is_a_folder(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "odd.refs.json"
    small_cache(named)
    assert not is_reference(str(named)) and open_cache(named).digest == open_cache(folder).digest
    push(named, "memory://refs/odd.refs.json")
    assert open_cache("memory://refs/odd.refs.json/").digest == open_cache(named).digest
    with pytest.raises(SoftlabelsError, match=r"refs\.json"):
        open_cache("memory://refs/odd.refs.json")
    with pytest.raises(CacheNotFoundError, match="no reference file"):
        open_cache(tmp_path / "absent.refs.json")
    with pytest.raises(CacheNotFoundError, match="a slash at its end"):
        open_cache("memory://refs/absent.refs.json")


def test_parts_of_objects(folder: Path, tmp_path: Path) -> None:
    """Many files in one object, each a range of it."""
    refs: dict[str, Any] = {}
    packed = b"before"
    for path, data in files_of(folder).items():
        refs[path] = ["memory://refs/packed", len(packed), len(data)]
        packed += data
    fsspec.filesystem("memory").pipe_file("/refs/packed", packed + b"after")
    fsspec.filesystem("memory").pipe_file("/refs/packed.refs.json", json.dumps({"version": 1, "refs": refs}).encode())
    for copies in (None, tmp_path / "copies"):
        cache = open_cache("memory://refs/packed.refs.json", cache_dir=copies)
        assert verify(cache).ok
        one = cache.decode(cache.read_rows("train", 0, np.array([9]))).logits
        assert np.array_equal(one, logits_of(LAYOUT.parts[1])[1:2])
        for part in LAYOUT.parts:
            assert np.array_equal(cache.decode(cache.read_part(part)).logits, logits_of(part))
    assert list((tmp_path / "copies").glob("??/*"))


def test_stock_fsspec_and_zarr_read_it(folder: Path, tmp_path: Path, web: Any) -> None:
    out = refer(folder, web.folder, web.url, tmp_path / "small.refs.json")
    plain = fsspec.filesystem("reference", fo=str(out), skip_instance_cache=True)
    assert json.loads(plain.cat_file("manifest.json"))["format"] == 1
    options = {"fo": str(out), "remote_options": {"asynchronous": True}}
    labels = zarr.open_group("reference://labels.zarr", storage_options=options, mode="r")
    part = LAYOUT.parts[1]
    first = part.start
    assert np.array_equal(np.asarray(labels["logits"][first : first + part.positions]), logits_of(part))  # type: ignore[index]


@pytest.mark.parametrize("encoding", [Dense(), TopK(k=32, dtype="float16", temperatures=(1.0,))])
def test_one_row_is_a_chunk_and_a_shard_index(tmp_path: Path, web: Any, encoding: Any) -> None:
    whole = wide_cache(tmp_path / "wide", encoding)
    urls = scatter(tmp_path / "wide", web.folder, web.url)
    (tmp_path / "wide.refs.json").write_bytes(to_json(urls))
    cache = open_cache(tmp_path / "wide.refs.json", cache_dir=tmp_path / "copies")
    web.requests.clear()
    row = np.array([700])
    found = cache.read_rows("train", 0, row)
    for name, rows in whole.read_rows("train", 0, row).items():
        assert np.array_equal(found[name], rows)
    moved: Counter[str] = Counter()
    for name, size in web.requests:
        moved[name] += size
    plans = cache._labels.plans  # type: ignore[attr-defined]
    for name, path in cache.label_paths(1).items():
        plan, size = plans[name], cache.file_records()[path].size
        # A chunk before compression with its crc32c, and the index with its own; zstd may add a few bytes to noise.
        most = plan.chunk * plan.row_bytes + 4 + 16 * plan.chunks + 4 + (64 if plan.zstd else 0)
        taken = moved.pop(urls[path].rpartition("/")[2])
        print(f"{name}: {taken:,} bytes of {size:,}, {plan.chunks} chunks in the shard; at most {most:,}")
        assert 0 < taken <= most
        if name == "logits" and isinstance(encoding, Dense):
            assert plan.chunks >= 8 and taken < size / 6
    assert not moved and len(web.requests) == 2 * len(plans)
    assert not list((tmp_path / "copies").glob("??/*"))


def test_one_row_over_s3(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "testing", "secret": "testing"}
        bucket = fsspec.filesystem("s3", **options)
        bucket.mkdir("bytes")
        whole = wide_cache(tmp_path / "wide")
        (tmp_path / "store").mkdir()
        urls = scatter(tmp_path / "wide", tmp_path / "store", "s3://bytes/prefix")
        for path, url in urls.items():
            bucket.pipe_file(url, (tmp_path / "wide" / path).read_bytes())
        bucket.pipe_file("s3://bytes/wide.refs.json", to_json(urls))
        cache = open_cache("s3://bytes/wide.refs.json", **options)
        sizes: list[int] = []
        real = ReferencedFiles.ranged

        def counting(self: Any, *asked: Any) -> bytes:
            data = real(self, *asked)
            sizes.append(len(data))
            return data

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReferencedFiles, "ranged", counting)
            patch.setattr(type(cache.files.filesystem), "open", None)  # type: ignore[attr-defined]
            patch.setattr(ReferencedFiles, "whole", None)
            found = cache.read_rows("train", 0, np.array([700]))
        plan = cache._labels.plans["logits"]  # type: ignore[attr-defined]
        print(f"s3: {sizes} bytes of {cache.file_records()['labels.zarr/logits/c.1.0'].size:,}")
        assert sizes == [16 * plan.chunks + 4, plan.chunk * plan.row_bytes + 4]
        assert np.array_equal(found["logits"], whole.read_rows("train", 0, np.array([700]))["logits"])
    finally:
        moto.stop()


def test_many_rows_come_in_few_requests(tmp_path: Path, web: Any) -> None:
    whole = wide_cache(tmp_path / "wide")
    cache = open_cache(refer(tmp_path / "wide", web.folder, web.url, tmp_path / "wide.refs.json"))
    web.requests.clear()
    rows = np.random.default_rng(0).permutation(1024)[:900]
    assert np.array_equal(cache.read_rows("train", 0, rows)["logits"], whole.read_rows("train", 0, rows)["logits"])
    assert len(web.requests) == 4  # of each shard its index, and all its chunks


def test_a_server_without_ranges(tmp_path: Path, web: Any) -> None:
    whole = wide_cache(tmp_path / "wide")
    web.ranges = False
    cache = open_cache(refer(tmp_path / "wide", web.folder, web.url, tmp_path / "wide.refs.json"))
    rows = np.array([5, 700, 1023])
    assert np.array_equal(cache.read_rows("train", 0, rows)["logits"], whole.read_rows("train", 0, rows)["logits"])


def test_what_fails_in_passing_is_asked_for_again(folder: Path, tmp_path: Path, web: Any) -> None:
    out = refer(folder, web.folder, web.url, tmp_path / "small.refs.json")
    files = ReferencedFiles(str(out), patience=QUICK)
    cache = Cache(files)
    for failing in (1, 3):
        web.failing = failing
        got = cache.decode(cache.read_rows("train", 0, np.array([9]))).logits
        assert np.array_equal(got, logits_of(LAYOUT.parts[1])[1:2]) and web.failing == 0
    web.failing = 2
    assert files.size("manifest.json") == (folder / "manifest.json").stat().st_size
    assert files.retries >= 2  # where asking for a size failed, fsspec itself asks in another way
    web.failing = 1000
    with pytest.raises(CacheError, match="not reached in 12 tries: ClientResponseError: 503"):
        files.size("manifest.json")


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path, web: Any) -> None:
    out = refer(folder, web.folder, web.url, tmp_path / "small.refs.json")
    cache = open_cache(out)
    targets = ReferencedFiles(str(out)).targets
    shard = "labels.zarr/logits/c.1.0"
    place = web.folder / targets[shard].url.removeprefix(f"{web.url}/")
    data = place.read_bytes()
    place.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(CacheCorruptError, match=r"c\.1\.0 of .*small\.refs\.json \(http"):
        cache.read_part(1)
    place.unlink()
    problems = verify(open_cache(out)).problems
    assert [problem.path for problem in problems] == [shard] and "missing" in problems[0].message
    (web.folder / targets["manifest.json"].url.removeprefix(f"{web.url}/")).unlink()
    with pytest.raises(CacheNotFoundError, match="Has its owner pushed"):
        open_cache(out)


def test_it_is_pulled_and_never_written(folder: Path, tmp_path: Path, web: Any) -> None:
    out = refer(folder, web.folder, web.url, tmp_path / "small.refs.json")
    pull(str(out), tmp_path / "pulled")
    assert files_of(tmp_path / "pulled") == files_of(folder)
    files = ReferencedFiles(str(out))
    for action in (lambda: files.write("x", b""), lambda: files.delete("manifest.json")):
        with pytest.raises(ConfigError, match="only read"):
            action()


GOOD = "s3://bucket/files/md5/ab/cd"
HOSTILE: dict[str, Any] = {
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "nested": b"[" * 100_000,
    "a key twice": b'{"version": 1, "refs": {"manifest.json": ["%b"], "manifest.json": ["s3://other/x"]}}'
    % GOOD.encode(),
    "a list": [],
    "version 0": {"manifest.json": [GOOD]},
    "no version": {"refs": {"manifest.json": [GOOD]}},
    "version 2": {"version": 2, "refs": {"manifest.json": [GOOD]}},
    "version true": {"version": True, "refs": {"manifest.json": [GOOD]}},
    "templates": {"version": 1, "templates": {"u": "s3://bucket"}, "refs": {"manifest.json": ["{{u}}/x"]}},
    "gen": {"version": 1, "gen": [{"key": "{{i}}", "url": "x", "dimensions": {"i": [1]}}], "refs": {}},
    "no manifest": {"version": 1, "refs": {"parts.parquet": [GOOD]}},
    "nothing": {"version": 1, "refs": {}},
    "refs no object": {"version": 1, "refs": [["manifest.json", GOOD]]},
    "leaves the cache": {"../manifest.json": [GOOD]},
    "absolute": {"/etc/passwd": [GOOD]},
    "data within": {"manifest.json": "{}"},
    "base64": {"manifest.json": "base64:e30="},
    "a number": {"manifest.json": [7]},
    "null": {"manifest.json": [None]},
    "two": {"manifest.json": [GOOD, 0]},
    "negative": {"manifest.json": [GOOD, -1, 10]},
    "vast": {"manifest.json": [GOOD, 0, 2**70]},
    "fraction": {"manifest.json": [GOOD, 0.5, 10]},
    "bool": {"manifest.json": [GOOD, False, True]},
    "template": {"manifest.json": ["{{ cycler.__init__.__globals__.os.popen('id').read() }}"]},
    "a path": {"manifest.json": ["/etc/passwd"]},
    "relative": {"manifest.json": ["manifest.json"]},
    "chained": {"manifest.json": ["simplecache::s3://bucket/x"]},
    "chained inside": {"manifest.json": ["s3://bucket/zip://x::file:///etc/passwd"]},
    "upwards": {"manifest.json": ["s3://bucket/a/../../x"]},
    "a shell": {"manifest.json": ["ssh://host/x"]},
    "itself": {"manifest.json": ["reference://host/x"]},
    "no host": {"manifest.json": ["s3:///x"]},
    "a password": {"manifest.json": ["https://user:secret@host/x"]},
    "a new line": {"manifest.json": ["https://host/x\r\nHost: other"]},
    "a nul": {"manifest.json": ["s3://bu\0cket/x"]},
    "half a character": b'{"version": 1, "refs": {"manifest.json": ["s3://bucket/\\ud800"]}}',
    "half a name": b'{"version": 1, "refs": {"\\ud800": ["s3://bucket/x"]}}',
    "long": {"manifest.json": ["s3://bucket/" + "x" * 10_000]},
    "two places": {"manifest.json": [GOOD], "parts.parquet": ["https://other.example.org/x"]},
    "a file here": {"manifest.json": ["file:///etc/passwd"]},
    "a file of a host": {"manifest.json": ["file://host/etc/passwd"]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HOSTILE[name]
    if isinstance(held, dict) and not {"version", "refs"} & held.keys() and name != "version 0":
        held = {"version": 1, "refs": {"manifest.json": [GOOD], **held}}
    data = held if isinstance(held, bytes) else json.dumps(held).encode()
    monkeypatch.setattr(ReferencedFiles, "size", None)  # nothing is asked for
    fsspec.filesystem("memory").pipe_file("/refs/hostile.refs.json", data)
    with pytest.raises(SoftlabelsError) as caught:
        open_cache("memory://refs/hostile.refs.json")
    assert "hostile.refs.json" in str(caught.value) or "no plain path" in str(caught.value)
    assert len(str(caught.value)) < 1000
    (tmp_path / "hostile.refs.json").write_bytes(data)
    if name != "a file here":  # of its own machine a local file may name files: they are read as a cache
        said = CliRunner().invoke(main, ["cache", "inspect", str(tmp_path / "hostile.refs.json")])
        assert said.exit_code == 1 and isinstance(said.exception, SystemExit)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([GOOD, "manifest.json", "x"]) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["manifest.json", "x"]), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from([1, 1, 1, 2, None]))
def test_whatever_it_holds_is_read_or_refused(refs: Any, version: Any) -> None:
    with contextlib.suppress(SoftlabelsError):
        found = parse(json.dumps({"version": version, "refs": refs}).encode(), "x.refs.json", local=False)
        assert version == 1 and "manifest.json" in found
        assert all(target.url.startswith("s3://bucket/") for target in found.values())


@given(st.data())
def test_a_file_with_other_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(to_json({"manifest.json": GOOD, "parts.parquet": f"{GOOD}e"}))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SoftlabelsError):
        assert "manifest.json" in parse(bytes(whole), "x.refs.json", local=False)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.references.MAX_BYTES", 1000)
    (tmp_path / "big.refs.json").write_bytes(b" " * 1001)
    fsspec.filesystem("memory").pipe_file("/refs/big.refs.json", b" " * 5000)
    for address in (str(tmp_path / "big.refs.json"), "memory://refs/big.refs.json"):
        with pytest.raises(CacheCorruptError, match="more than 1,000 bytes"):
            open_cache(address)


def test_other_files_of_this_machine_are_no_cache(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret words")
    (tmp_path / "x.refs.json").write_bytes(to_json({"manifest.json": f"file://{tmp_path}/secret"}))
    with pytest.raises(SoftlabelsError) as caught:
        open_cache(tmp_path / "x.refs.json")
    assert "secret words" not in str(caught.value)


def test_the_bytes_of_a_reference_file_depend_on_nothing_else() -> None:
    urls = {"manifest.json": GOOD, "index/part-00000.parquet": f"{GOOD}e"}
    made = to_json(urls)
    assert made == to_json(dict(reversed(urls.items())))
    assert {path: target.url for path, target in parse(made, "x", local=False).items()} == urls
    assert json.loads(made) == {"version": 1, "refs": {path: [url] for path, url in sorted(urls.items())}}
