"""Documents from tables: JSON Lines, Parquet, and datasets of the Hugging Face library. A row is a document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.datasets.base import split_index
from pipeline.datasets.external import open_hub
from pipeline.datasets.tokens.documents import Document, LeftOut, Table
from pipeline.errors import ConfigError, DataError, first_line, some
from pipeline.identity import SPLITS
from pipeline.references import optional

MAX_LINE = 1 << 28
"""Bytes of a line of JSON Lines; a longer one is no document but a file of another kind."""

ROWS = 1024
"""Rows of Parquet in memory at a time."""


@dataclass(frozen=True)
class Columns:
    """Which field of a row is what. ``prompt`` and ``completion`` come together, and then in the place of ``text``."""

    text: str = "text"
    prompt: str | None = None
    completion: str | None = None
    id: str | None = None
    split: str | None = None

    @property
    def needed(self) -> list[str]:
        """The fields that every row has to have, each once."""
        fields = (self.body, self.prompt, self.id, self.split)
        return list(dict.fromkeys(name for name in fields if name is not None))

    @property
    def body(self) -> str:
        """The field whose text is scored."""
        return self.text if self.completion is None else self.completion

    def document(
        self, row: Mapping[str, Any], name: str, number: int, left_out: LeftOut, split: str | None = None
    ) -> Document | None:
        """The document of a row; None, and counted, where its text is empty or cannot be written as UTF-8.

        Raises DataError naming the row and the field for one that is missing or no text.
        """
        where = f"{name}, row {number}"
        for field in self.needed:
            if field not in row:
                raise DataError(f"{where} has no field {field!r}; it has {some(sorted(map(str, row)), 8)}")
        body, prompt = row[self.body], "" if self.prompt is None else row[self.prompt]
        for field, value in ((self.body, body), (str(self.prompt), prompt)):
            if not isinstance(value, str):
                raise DataError(f"{where}: field {field!r} should be a text; found {type(value).__name__}")
        if self.split is not None:
            split = _split(row[self.split], where, self.split)
        if not body:
            left_out.empty += 1
            return None
        try:
            (body + prompt).encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            left_out.not_utf8 += 1
            return None
        return Document(f"{name}/{number}" if self.id is None else str(row[self.id]), body, prompt, split)


def _split(value: Any, where: str, field: str) -> str:
    index = split_index(value) if isinstance(value, str) else None
    if index is None:
        raise DataError(f"{where}: field {field!r} should be one of {', '.join(SPLITS)}; found {value!r:.40}")
    return SPLITS[index]


def readers(columns: Columns) -> dict[str, Table]:
    """A reader of one file for each suffix of tables."""

    def json_lines(path: Path, name: str, left_out: LeftOut) -> Iterator[Document]:
        try:
            with open(path, "rb") as file:
                number = 0
                while line := file.readline(MAX_LINE + 1):
                    number += 1
                    if line.strip() and (
                        found := columns.document(_parsed(line, name, number), name, number, left_out)
                    ):
                        yield found
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    def parquet(path: Path, name: str, left_out: LeftOut) -> Iterator[Document]:
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                held = file.schema_arrow.names
                if missing := [field for field in columns.needed if field not in held]:
                    raise DataError(f"{name} has no column {missing[0]!r}; it has {some(held, 8)}")
                for batch in file.iter_batches(ROWS, columns=columns.needed):
                    for row in batch.to_pylist():
                        if found := columns.document(row, name, number, left_out):
                            yield found
                        number += 1
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}") from error

    return {".jsonl": json_lines, ".ndjson": json_lines, ".parquet": parquet}


def _parsed(line: bytes, name: str, number: int) -> Mapping[str, Any]:
    if len(line) > MAX_LINE:
        raise DataError(f"{name}, row {number} is longer than {MAX_LINE >> 20} MiB; a line should be one JSON object")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}, row {number} should be a JSON object: {first_line(error)}") from None
    if not isinstance(row, dict):
        raise DataError(f"{name}, row {number} should be a JSON object; found {type(row).__name__}")
    return row


def read_hub(
    path: str, configuration: str | None, only: tuple[str, ...], columns: Columns, left_out: LeftOut
) -> Iterator[Document]:
    """The rows of a dataset of the Hugging Face library, in its splits; ``only`` names those to take (default: all).

    Ids are "NAME/train/42". A single split called train, or none, is no split of its own.
    Raises ConfigError, DataError.
    """
    name = f"hf:{path}"
    held = open_hub(optional("datasets", "hf", f"--text {name}"), path, name, configuration)
    if unknown := [split for split in only if split not in held]:
        raise ConfigError(f"--hf-split {some(unknown)}: {name} has no such split; it has {', '.join(held)}")
    taken = {split: part for split, part in held.items() if not only or split in only}
    own = set(taken) not in ({"train"}, {""})
    for split, part in taken.items():
        index = split_index(split)
        label = SPLITS[index] if own and index is not None else None
        missing = [field for field in columns.needed if field not in part.features]
        if missing:
            raise DataError(f"{name} has no column {missing[0]!r}; it has {some(list(part.features), 8)}")
        for number, row in enumerate(part.select_columns(columns.needed)):
            if found := columns.document(row, f"{Path(path).name}/{split}".rstrip("/"), number, left_out, label):
                yield found
