"""DistillKit's compressed logits: Parquet rows of token sequences, each position a string of bytes.

    input_ids             list of token ids, T of them
    compressed_logprobs   for each of P positions, bytes: exact values, coefficients of a curve, quantised residuals
    bytepacked_indices    for each position, bytes: K token ids in ceil(log2(V)) bits each, highest bit first

The K log-probabilities fall from the largest on. The first ``exact_k`` are stored in ``exact_dtype``; the others as a
sum of ``polynomial_terms`` of their place (0, 1, 2, ..., or 0 to 1 with ``normalize_t``), of which the coefficients
are stored in ``term_dtype``, and of ``residual_bins``, each a scale and integers of ``element_bits`` bits less half
their range. With ``delta_encoding`` what is stored are differences, summed up in float32. How a row is to be read is
said nowhere in it: the configuration comes beside it, as ``compression_config.yaml``.

What comes back differs from DistillKit's own by float arithmetic alone: sums of terms are taken in float64 here.

Source: github.com/arcee-ai/DistillKit at a61c2e7, distillkit/compression/{bitpack,monotonic_logprobs,config}.py,
distillkit/sample_common.py and distillkit/sample_logits_vllm.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.caches.importing.distillkit_config import Compression
from pipeline.caches.importing.logprobs import Ints, Scored, TopLogprobs, Wide
from pipeline.errors import DataError, some

Bytes = npt.NDArray[np.uint8]
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
LEGACY = ("packed_indices", "exact_values", "coeffs")


def read_distillkit(
    path: Path, config: Compression, first: int = 0, group: int | None = None
) -> Iterator[tuple[tuple[int, int], Scored]]:
    """The rows of a Parquet file (or of one row ``group``), in its order, one row group in memory at a time, each with
    the number of its row group and its own within that.

    A row has no id: its number stands for one, counted from ``first`` on.

    A capture scores tokens 1 to T - 1 at positions 0 to T - 2. A packed file has as many distributions as tokens, and
    ``attention_mask`` numbers its documents: the last position of each scores no token of its own, and is left out.

    Raises DataError for other columns and for bytes that ``config`` does not describe, naming the row.
    """
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if all(name in names for name in LEGACY):
            raise DataError(
                f"{path} is of DistillKit's legacy format, which keeps centred logits without their normaliser: what "
                "share of the probability was dropped is not known, and nothing is invented. Capture again"
            )
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise DataError(f"{path} should have columns {', '.join(COLUMNS)}; found {some(sorted(names), 8)}")
        columns = [*COLUMNS, *(name for name in ("attention_mask",) if name in names)]
        metadata = file.metadata
        starts = np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])
        for number in range(metadata.num_row_groups) if group is None else [group]:
            table = file.read_row_group(number, columns=columns, use_threads=False)
            for place, values in enumerate(table.to_batches(max_chunksize=1)):
                row = int(starts[number]) + place
                yield (number, place), _row(values, config, str(first + row), f"{path}, row {row:,}")
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _row(values: pa.RecordBatch, config: Compression, name: str, where: str) -> Scored:
    tokens = _whole(values, "input_ids", where)
    packed = {
        "compressed_logprobs": _bytes(values, "compressed_logprobs", config.logprob_bytes, where),
        "bytepacked_indices": _bytes(values, "bytepacked_indices", config.index_bytes, where),
    }
    logprobs, indices = packed.values()
    count = len(logprobs)
    if len(indices) != count or count not in (len(tokens), len(tokens) - 1) or not count:
        raise DataError(
            f"{where}: {len(tokens)} tokens should come with as many distributions, or one fewer; found {count} of "
            f"log-probabilities and {len(indices)} of ids"
        )
    mask = _whole(values, "attention_mask", where) if "attention_mask" in values.schema.names else np.ones_like(tokens)
    if len(mask) != len(tokens):
        raise DataError(f"{where}: attention_mask should have {len(tokens)} items; found {len(mask)}")
    positions = np.flatnonzero(mask[:-1] == mask[1:])
    positions = positions[positions < count]
    try:
        said = decode(indices[positions], logprobs[positions], config)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    counts = np.full(len(positions), config.k, np.int64)
    return Scored(name, tokens, positions, counts, said.ids.reshape(-1), said.logprobs.reshape(-1))


def _whole(values: pa.RecordBatch, name: str, where: str) -> Ints:
    column = values.column(name)
    lists = column.type
    if not (pa.types.is_list(lists) or pa.types.is_large_list(lists)) or not pa.types.is_integer(lists.value_type):
        raise DataError(f"{where}: {name} should be a list of whole numbers; found {lists}")
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise DataError(f"{where}: {name} holds missing values")
    numbers = flat.to_numpy(zero_copy_only=False)
    if len(numbers) and int(numbers.max()) >= 1 << 31:
        raise DataError(f"{where}: {name} should hold token ids; found {numbers.max()}")
    return np.asarray(numbers, np.int64)


def _bytes(values: pa.RecordBatch, name: str, width: int, where: str) -> Bytes:
    """(P, width) bytes of a list of lists."""
    outer = values.column(name)
    lists = (pa.types.is_list, pa.types.is_large_list)
    inner = outer.flatten() if any(is_list(outer.type) for is_list in lists) else outer
    if (
        inner is outer
        or not any(is_list(inner.type) for is_list in lists)
        or not pa.types.is_integer(inner.type.value_type)
    ):
        raise DataError(f"{where}: {name} should be a list of lists of bytes; found {outer.type}")
    flat = inner.flatten()
    lengths = np.diff(inner.offsets.to_numpy())
    if outer.null_count or inner.null_count or flat.null_count:
        raise DataError(f"{where}: {name} holds missing values")
    if (lengths != width).any():
        found = sorted({int(length) for length in lengths})
        raise DataError(
            f"{where}: {name} should have {width} bytes for each position by its configuration; found "
            f"{some([str(n) for n in found])}. Is it the configuration of this capture?"
        )
    numbers = flat.to_numpy(zero_copy_only=False)
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) <= 255:
        raise DataError(f"{where}: {name} should hold bytes; found {numbers.min()} to {numbers.max()}")
    return np.asarray(numbers, np.uint8).reshape(len(inner), width)


def decode(indices: Bytes, logprobs: Bytes, config: Compression) -> TopLogprobs:
    """Ids and log-probabilities (P, K) out of packed ``indices`` (P, index_bytes) and ``logprobs`` (P, logprob_bytes).

    Raises DataError for widths that ``config`` does not describe, ids outside the vocabulary, values not finite.
    """
    wanted = (config.index_bytes, config.logprob_bytes)
    if (indices.shape[1:], logprobs.shape[1:]) != ((wanted[0],), (wanted[1],)):
        raise DataError(f"a position should have {wanted} bytes; found {indices.shape[1:] + logprobs.shape[1:]}")
    ids = unpack(indices, config.index_bits, config.k)
    values = unpack_logprobs(logprobs, config)
    if ids.size and int(ids.max()) >= config.d:
        raise DataError(f"ids should lie below {config.d:,}, the vocabulary (d); found {ids.max():,}")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"log-probabilities of position {row} are not finite. Is it the configuration of this capture?")
    # A curve may pass 0 where the first of a confident position do not; the encoding holds their sum to 1.
    return TopLogprobs(ids, np.minimum(values, 0.0))


def unpack(packed: Bytes, bits: int, count: int) -> Ints:
    """``count`` numbers of ``bits`` bits (at most 62) out of each row of bytes, highest bit first; the rest is padding.

    >>> unpack(np.array([[0b10101100]], np.uint8), 3, 2).tolist()
    [[5, 3]]
    """
    flags = np.unpackbits(packed, axis=1, count=bits * count).reshape(len(packed), count, bits)
    # In bytes of their own, so that numpy packs them eight at a time.
    width = -(-bits // 8) * 8
    padded = np.zeros((len(packed), count, width), np.uint8)
    padded[..., width - bits :] = flags
    parts = np.packbits(padded, axis=2).astype(np.int64)
    numbers = np.zeros(parts.shape[:2], np.int64)
    for place in range(parts.shape[2]):
        numbers = numbers << 8 | parts[..., place]
    return numbers


def unpack_logprobs(packed: Bytes, config: Compression) -> Wide:
    """(P, K) log-probabilities out of rows of bytes, rounded where DistillKit rounds."""
    exact_dtype, term_dtype = config.exact_dtype, config.term_dtype
    rest = iter(np.split(packed, np.cumsum([width for width in config.widths])[:-1], axis=1))
    exact = exact_dtype.read(next(rest))
    coefficients = term_dtype.read(next(rest))
    fitted = config.k - config.exact_k
    pieces = [np.empty((len(packed), 0))]
    for bin in config.residual_bins:
        scale = bin.scale_dtype.read(next(rest))
        numbers = unpack(next(rest), bin.element_bits, bin.num_elements)
        signed = 2 * numbers - 1 if bin.element_bits == 1 else numbers - (1 << (bin.element_bits - 1))
        product = signed.astype(np.float32).astype(np.float64) * scale
        pieces.append(product if bin.scale_dtype.name == "float64" else product.astype(np.float32).astype(np.float64))
    residual = np.zeros((len(packed), fitted))
    there = np.concatenate(pieces, axis=1)
    residual[:, : there.shape[1]] = there
    values = exact_dtype.round(residual)
    if config.polynomial_terms:
        matrix = term_dtype.round(terms(config.polynomial_terms, fitted, config))
        products = term_dtype.round(matrix[None] * coefficients[:, None])
        values = (term_dtype | exact_dtype).round(term_dtype.round(products.sum(axis=2)) + values)
    found = np.concatenate([exact, values], axis=1)
    if config.delta_encoding:
        found = exact_dtype.round(np.cumsum(found, axis=1, dtype=np.float32).astype(np.float64))
    return found


def terms(names: Sequence[Any], count: int, config: Compression) -> Wide:
    """(count, number of terms): each term at the places 0, 1, 2, ..., or at as many from 0 to 1, normalised."""
    places = np.linspace(0.0, 1.0, count) if config.normalize_t else np.arange(count, dtype=np.float64)
    places = config.term_dtype.round(places)
    functions = {"sqrt": np.sqrt, "exp": np.exp}
    with np.errstate(over="ignore"):
        return np.stack([functions[n](places) if isinstance(n, str) else places**n for n in names], axis=1)
