"""The options of ``softlabels tokenize`` and the report of what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.configuration import REQUIRED, Config, option
from pipeline.datasets.tokens.corpus import HUB, Corpus
from pipeline.datasets.tokens.documents import STDLIB, TEXT_SUFFIXES
from pipeline.datasets.tokens.packing import DOCUMENTS, KINDS, MAX_LENGTH, PACKED, Packing
from pipeline.datasets.tokens.tables import Columns
from pipeline.datasets.tokens.tokenizer import BYTES, END
from pipeline.identity import short


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig(Config):
    """Options of ``softlabels tokenize``."""

    text: tuple[str, ...] = option(
        (STDLIB,),
        f"documents: {STDLIB} (the sources of this Python's standard library), a file, a folder "
        f"({' '.join(TEXT_SUFFIXES)} .jsonl .ndjson .parquet), a glob, or hf:NAME_OR_FOLDER",
    )
    field: str = option("text", "field of JSON Lines, column of Parquet or of the hub's dataset that holds the text")
    prompt: str | None = option(None, "with --completion: the field whose text comes first and is not scored")
    completion: str | None = option(None, "with --prompt: the field whose text is scored, in the place of --field")
    id_field: str | None = option(None, "field of a document's id; the file's name and the row's number unless given")
    split_field: str | None = option(None, "field that says train, validation or test; chosen by id unless given")
    hf_config: str | None = option(None, "configuration of the hub's dataset, where it has several")
    hf_split: tuple[str, ...] = option(
        (), "splits of the hub's dataset to take; all of train, validation, test if none"
    )
    held_out: float = option(0.1, "share of the documents for validation and test, half each, chosen by id")
    max_documents: int = option(0, "documents to take from the beginning; 0 takes all")
    max_bytes: int = option(0, "bytes of text to take from the beginning, in whole documents; 0 takes all")
    tokenizer: str | None = option(
        None, "tokenizer.json, a folder with one, or a name on the hub; unless given, one is trained on the train split"
    )
    vocabulary: int = option(4096, f"tokens of the byte-level BPE that is trained: {END}, 256 bytes, merges")
    end_token: str | None = option(None, "with --tokenizer: the token that ends a document; the usual ones are known")
    pad_vocabulary: int = option(
        0, "with --tokenizer: classes of the dataset, where models have more outputs than it has tokens; 0: as many"
    )
    packing: str = option(
        PACKED, "packed: documents joined and cut every --length tokens; documents: a sequence each", choices=KINDS
    )
    length: int = option(256, "tokens of a sequence")
    score_boundaries: bool = option(False, "of packed: predict a document's first token from the one before it")
    truncate: bool = option(False, "of documents: leave out what is beyond --length, instead of going on in pieces")
    overwrite: bool = option(False, "replace a result of other options or text at --out")
    out: Path = option(REQUIRED, "directory of the packing contract; then --data tokens:OUT")

    @property
    def corpus(self) -> Corpus:
        """The documents that the options name."""
        return Corpus(
            sources=self.text,
            columns=Columns(self.field, self.prompt, self.completion, self.id_field, self.split_field),
            hub_configuration=self.hf_config,
            hub_splits=self.hf_split,
            max_documents=self.max_documents,
            max_bytes=self.max_bytes,
            held_out=self.held_out,
        )

    @property
    def how(self) -> Packing:
        """The packing that the options name."""
        return Packing(self.packing, self.length, self.score_boundaries, self.truncate)

    def problems(self) -> Iterator[str]:
        if not self.text:
            yield "--text should name at least one source"
        if (self.prompt is None) != (self.completion is None):
            yield "--prompt and --completion go together: the first is read, the second is predicted"
        if self.completion is not None and self.given("field"):
            yield "--field is not read with --prompt and --completion: leave it out"
        if (self.hf_config is not None or self.hf_split) and not any(text.startswith(HUB) for text in self.text):
            yield "--hf-config and --hf-split are of --text hf:NAME"
        if not 0 <= self.held_out < 1:
            yield f"--held-out should be 0 or more and below 1; found {self.held_out}"
        yield from self.below(max_documents=0, max_bytes=0, pad_vocabulary=0)
        if self.tokenizer is not None and self.given("vocabulary"):
            yield "--vocabulary is of a tokenizer that is trained here: leave it out, or --tokenizer"
        if self.tokenizer is None and self.given("end_token", "pad_vocabulary"):
            yield "--end-token and --pad-vocabulary are of the --tokenizer that is named"
        if self.vocabulary <= BYTES:
            yield f"--vocabulary should be at least {BYTES + 1}: 256 bytes and {END}; found {self.vocabulary}"
        if not 1 <= self.length <= MAX_LENGTH:
            yield f"--length should be 1 to {MAX_LENGTH}; found {self.length}"
        if self.score_boundaries and self.packing == DOCUMENTS:
            yield "--score-boundaries is of --packing packed: before a document's own sequence there is no token"
        if self.truncate and self.packing == PACKED:
            yield "--truncate is of --packing documents: packed leaves nothing out"


@dataclass(frozen=True)
class TokenizeReport:
    """What was written, or found finished. ``record``: the content of contract.json; times are in seconds."""

    out: str
    record: dict[str, Any]
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for people."""
        record = self.record
        sequences = sum(record["sequences"][split] for split in record["documents"])
        per_token = record["scored_bytes"] / record["scored"]
        did = f"{self.seconds:.1f} s" if self.seconds else "found finished"
        left_out = record["sequences"]["left_out"]
        without = f" ({left_out:,} without a scored position left out)" if left_out else ""
        return (
            f"{self.out}: {sequences:,} sequences{without}, {record['tokens']:,} tokens of "
            f"{record['tokenizer']['kind']}-{record['tokenizer']['vocabulary']}, {record['scored']:,} scored "
            f"positions, {per_token:.2f} bytes per token, {did}; digest {short(record['digest'])}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dict(vars(self))
