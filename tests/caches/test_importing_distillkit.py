"""What DistillKit's own code wrote and read back (foreign/README.md) is read alike here, in every configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.caches.importing.distillkit import decode, read_distillkit, unpack
from pipeline.caches.importing.distillkit_config import Compression, Float
from pipeline.caches.importing.logprobs import Scored, encode, narrowed
from pipeline.encodings import TopK
from pipeline.errors import ConfigError, DataError

FOREIGN = Path(__file__).parent / "foreign"
NAMES = sorted(path.stem for path in (FOREIGN / "distillkit").glob("*.yaml"))


def config(name: str) -> Compression:
    return Compression.read(FOREIGN / "distillkit" / f"{name}.yaml")


def parquet(name: str) -> Path:
    return FOREIGN / "distillkit" / f"{name}.parquet"


def joined(rows: Iterable[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of all positions, (P, K) each."""
    rows = list(rows)
    return tuple(  # type: ignore[return-value]
        np.concatenate([getattr(row, name).reshape(len(row.counts), -1) for row in rows])
        for name in ("ids", "logprobs")
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_read_as_distillkit_reads_them(name: str) -> None:
    with np.load(FOREIGN / "distillkit.npz") as file:
        tokens, ids, logprobs = file["tokens"], file[f"{name}/ids"], file[f"{name}/logprobs"]
    rows = [row for _, row in read_distillkit(parquet(name), config(name), 5)]
    assert [row.id for row in rows] == ["5", "6"]
    assert [row.token_ids.tolist() for row in rows] == [tokens[:5].tolist(), tokens[5:].tolist()]
    assert [row.positions.tolist() for row in rows] == [[0, 1, 2, 3], [0, 1, 2]]
    assert (joined(rows)[0] == ids).all()
    found = joined(rows)[1]
    # Sums of few terms in another order: a rounding or two of the largest of them.
    np.testing.assert_allclose(found, np.minimum(logprobs, 0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_they_become_labels(name: str) -> None:
    options = config(name)
    encoding = TopK(options.k)
    for _, row in read_distillkit(parquet(name), options):
        said = replace(narrowed(row, options.k), fitted=True)
        made = encode(said, options.d, encoding)
        soft = encoding.decode(made.arrays, options.d)
        kept, residual = soft.at(1.0)
        np.testing.assert_allclose(np.exp(kept).sum(axis=1) + np.exp(residual), 1.0, atol=1e-5)
        by_id = np.take_along_axis(said.logprobs, np.argsort(said.ids, axis=1), axis=1)
        assert np.abs(np.exp(kept) - np.exp(by_id)).max() <= made.bound


def test_exact_values_are_those_of_the_teacher() -> None:
    with np.load(FOREIGN / "distillkit.npz") as file:
        logprobs = file["logprobs"]
    found = joined(row for _, row in read_distillkit(parquet("all_exact"), config("all_exact")))[1]
    assert (found == -np.sort(-logprobs, axis=1)[:, :8].astype(np.float16)).all()


@pytest.mark.parametrize(("bits", "count"), [(1, 9), (3, 5), (8, 4), (17, 7), (53, 3), (62, 2)])
def test_numbers_are_unpacked_highest_bit_first(bits: int, count: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (4, count))
    text = ["".join(f"{number:0{bits}b}" for number in row).ljust(-(-bits * count // 8) * 8, "1") for row in numbers]
    packed = np.array([[int(row[at : at + 8], 2) for at in range(0, len(row), 8)] for row in text], np.uint8)
    assert (unpack(packed, bits, count) == numbers).all()


def test_bfloat16_rounds_to_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000) * 100, [0.0, 1 + 2**-8, 1 + 3 * 2**-8]])
    rounded = torch.from_numpy(values).float().bfloat16()
    assert (Float("bfloat16").round(values) == rounded.double().numpy()).all()
    assert (Float("bfloat16").read(rounded.view(torch.uint8).numpy()[None]) == rounded.double().numpy()).all()
    assert np.isnan(Float("bfloat16").round(np.array([np.nan]))).all()


def test_a_packed_file_leaves_the_ends_of_its_documents_out(tmp_path: Path) -> None:
    table = pq.read_table(parquet("all_exact"))
    columns = {name: [[item for row in table[name].to_pylist() for item in row]] for name in table.column_names}
    columns["input_ids"] = [[1, 2, 3, 4, 5, 6, 7]]
    path = tmp_path / "packed.parquet"
    pq.write_table(
        pa.table(
            {**columns, "attention_mask": [[1, 1, 1, 1, 2, 2, 2]]},
            table.schema.append(pa.field("attention_mask", pa.list_(pa.int64()))),
        ),
        path,
    )
    ((_, row),) = read_distillkit(path, config("all_exact"))
    whole = joined(row for _, row in read_distillkit(parquet("all_exact"), config("all_exact")))[0]
    assert row.positions.tolist() == [0, 1, 2, 4, 5] and (joined([row])[0] == whole[[0, 1, 2, 4, 5]]).all()


def write(path: Path, **columns: Any) -> Path:
    table = pq.read_table(parquet("all_exact"))
    pq.write_table(pa.table({**{name: table[name] for name in table.column_names}, **columns}), path)
    return path


def bytes_of(values: Any, kind: Any = None) -> Any:
    return pa.array(values, pa.list_(pa.list_(kind or pa.uint8())))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"bytepacked_indices": bytes_of([[[0] * 9] * 4, [[0] * 10] * 3])}, "row 0: bytepacked_indices should have 10"),
        ({"bytepacked_indices": bytes_of([[[0] * 10] * 4, [[0] * 10] * 2])}, "row 1: 4 tokens .* found 3 .* and 2"),
        ({"bytepacked_indices": bytes_of([[[255] * 10] * 4, [[0] * 10] * 3])}, "row 0: ids should lie below 997"),
        ({"bytepacked_indices": bytes_of([[[300] * 10] * 4, [[0] * 10] * 3], pa.int32())}, "should hold bytes"),
        ({"bytepacked_indices": bytes_of([[[None] * 10] * 4, [[0] * 10] * 3])}, "missing values"),
        ({"bytepacked_indices": pa.array([[1.0], [2.0]])}, "a list of lists of bytes"),
        ({"compressed_logprobs": bytes_of([[[255] * 16] * 4, [[0] * 16] * 3])}, "position 0 are not finite"),
        ({"input_ids": pa.array([[1], [2]])}, "row 0: 1 tokens"),
        ({"input_ids": pa.array(["a", "b"])}, "a list of whole numbers"),
        ({"input_ids": pa.array([[2**63] * 5, [0] * 4], pa.list_(pa.uint64()))}, "should hold token ids"),
        ({"attention_mask": pa.array([[1], [1]])}, "attention_mask should have 5"),
    ],
)
def test_files_that_are_not_what_the_configuration_says(tmp_path: Path, columns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_distillkit(write(tmp_path / "a.parquet", **columns), config("all_exact")))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match="as Parquet"):
        list(read_distillkit(path, config("budget")))
    pq.write_table(pa.table({"input_ids": [[1]], "packed_indices": [1], "exact_values": [1], "coeffs": [1]}), path)
    with pytest.raises(DataError, match=r"legacy format.*normaliser"):
        list(read_distillkit(path, config("budget")))
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match=r"should have columns input_ids.*found text"):
        list(read_distillkit(path, config("budget")))
    with pytest.raises(DataError, match="bytes"):
        decode(np.zeros((1, 3), np.uint8), np.zeros((1, 3), np.uint8), config("budget"))
    with pytest.raises(DataError, match=r"Is it the configuration of this capture"):
        list(read_distillkit(parquet("budget"), config("quickstart")))


GOOD = {"d": 128_256, "k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"], "residual_bins": []}
BIN = {"scale_dtype": "float16", "element_bits": 8, "num_elements": 10}


def test_both_presets_take_the_bytes_that_their_authors_state() -> None:
    exact = {"exact_dtype": "bfloat16"}
    recommended = {**GOOD, **exact, "k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}
    found = [Compression.parse(value) for value in (recommended, {**GOOD, **exact}, {"logprob_compressor": GOOD})]
    assert [c.index_bits for c in found] == [17] * 3
    assert [c.index_bytes + c.logprob_bytes for c in found] == [272 + 56, 107 + 14, 107 + 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 1}, "d should be"),
        ({"d": True}, "d should be"),
        ({"k": 10**9}, "k should be"),
        ({"k": "50"}, "k should be"),
        ({"exact_k": 51}, "exact_k should be at most k"),
        ({"k": 200_000, "d": 128}, "k should be"),
        ({"d": 40}, "k at most d"),
        ({"exact_dtype": "int8"}, "exact_dtype should be one of"),
        ({"exact_dtype": ["float32"]}, "exact_dtype should be one of"),
        ({"polynomial_terms": [0, -1]}, "polynomial_terms should be"),
        ({"polynomial_terms": ["__import__"]}, "polynomial_terms should be"),
        ({"polynomial_terms": "sqrt"}, "polynomial_terms should be"),
        ({"polynomial_terms": [True]}, "polynomial_terms should be"),
        ({"polynomial_terms": []}, "values need polynomial_terms"),
        ({"residual_bins": None}, "residual_bins should be"),
        ({"residual_bins": [{**BIN, "more": 1}]}, "residual_bins should be"),
        ({"residual_bins": [{**BIN, "element_bits": 64}]}, "element_bits should be"),
        ({"residual_bins": [{**BIN, "num_elements": 50}]}, "hold 50 elements"),
        ({"delta_encoding": "yes"}, "delta_encoding should be"),
        ({"zstd": 1}, "has no zstd"),
        ({"polynomial_degree": 3}, "legacy"),
    ],
)
def test_configurations_that_say_nothing_readable(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Compression.parse({**GOOD, **change})


@pytest.mark.parametrize("text", ["- 1", "!!python/object/apply:os.system ['false']", "[" * 5000, "{a: {", "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compression_config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"compression_config\.yaml"):
        Compression.read(path)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "d": 0, "k": -1, "term_dtype": "float8"}))
    with pytest.raises(ConfigError) as error:
        Compression.read(path)
    assert len(error.value.problems) == 3
