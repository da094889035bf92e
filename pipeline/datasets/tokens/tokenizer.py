"""Text to token ids and back, by the ``tokenizers`` library: by file, by name on the hub, or trained here.

A tokenizer.json is data: the library executes nothing of it. Special tokens that occur in a text are read as text, so
that no document can end another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import identity
from pipeline.errors import ConfigError, DataError, MissingDependencyError, first_line, some
from pipeline.references import optional

END = "<|end|>"
"""The end of a document, in a vocabulary that is trained here."""

KNOWN_ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")
"""What other vocabularies call it; the first that a vocabulary has is taken, unless it is named."""

MAX_VOCABULARY = 1 << 24
FILE = "tokenizer.json"

BYTES = 256
"""Tokens that a byte-level vocabulary has before any merge."""


def _library() -> Any:
    return optional("tokenizers", "lm", "tokenizing text")


@dataclass(frozen=True)
class Encoded:
    """Token ids (n,) int64 of a text, and the UTF-8 bytes (n,) of it that each stands for: they sum to its length."""

    ids: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]


class Tokenizer:
    """A vocabulary of V tokens with what cuts text into them.

    - ``json``: the tokenizer.json; ``digest``: of its canonical JSON;
    - ``tokens``: V distinct texts in the order of the ids; ids that the vocabulary does not use are "<unused 7>";
    - ``end``: the id of the token that ends a document.
    """

    def __init__(self, tokenizer: Any, *, end: str | None = None, size: int = 0) -> None:
        """``size``: V, where a model has more outputs than the tokenizer has tokens."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.json: str = tokenizer.to_str(pretty=False)
        held = json.loads(self.json)
        self.digest: str = identity.digest(held)
        ids = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
        fewest = max(ids) + 1
        if size and size < fewest:
            raise ConfigError(f"--pad-vocabulary should be at least the {fewest} tokens of the tokenizer; found {size}")
        self.tokens = tuple(ids.get(number, f"<unused {number}>") for number in range(max(size, fewest)))
        self.kind = str(held["model"].get("type", "tokens")).lower()
        self.end = _end_of(tokenizer, end)
        self._by_bytes = "ByteLevel" in json.dumps(held.get("decoder"))
        self._bytes = np.array([_byte_length(token) for token in self.tokens], np.int64)

    @property
    def name(self) -> str:
        """For people: kind, size and the beginning of the digest.

        A pure function of the tokenizer, wherever it came from: it is part of what a cache says of its data.
        """
        return f"{self.kind}-{len(self.tokens)} ({identity.short(self.digest)})"

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text, without special tokens; several threads of the library work at once."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._measured(text, np.array(item.ids, np.int64)) for text, item in zip(texts, found, strict=True)]

    def _measured(self, text: str, ids: npt.NDArray[np.int64]) -> Encoded:
        size, counts = len(text.encode()), self._bytes[ids]
        if int(counts.sum()) == size:
            return Encoded(ids, counts)
        # Not byte-level, or normalised on the way: by where each token ends in the text. What stands between tokens
        # belongs to the next one, and a character that several share to the first.
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        ends = np.maximum.accumulate(np.array([end for _, end in offsets], np.int64)) if offsets else np.zeros(0, int)
        widths = np.array([len(character.encode()) for character in text], np.int64)
        before = np.concatenate([[0], np.cumsum(widths)])
        if len(ends):
            ends[-1] = len(text)
        return Encoded(ids, np.diff(before[ends], prepend=0))

    @property
    def library(self) -> Any:
        """The ``tokenizers.Tokenizer`` itself."""
        return self._tokenizer

    def sizes(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """UTF-8 bytes (n,) of the text that each of a sequence's tokens stands for; the end token stands for none."""
        if self._by_bytes:
            counts = self._bytes[ids]
        else:
            stream = _library().decoders.DecodeStream(skip_special_tokens=False)
            # A token in the middle of a character adds nothing, and the last one of it all.
            texts = [stream.step(self._tokenizer, number) or "" for number in ids.tolist()]
            counts = np.array([len(text.encode()) for text in texts], np.int64)
        return np.where(ids == self.end, 0, counts)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, the end token as it is written; bytes that are no UTF-8 become replacement characters."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _end_of(tokenizer: Any, named: str | None) -> int:
    for token in KNOWN_ENDS if named is None else (named,):
        if (found := tokenizer.token_to_id(token)) is not None:
            return int(found)
    if named is not None:
        raise ConfigError(f"--end-token {named!r} is no token of the tokenizer")
    raise ConfigError(
        f"the tokenizer has none of the tokens that usually end a text ({some(KNOWN_ENDS, 8)}): name it, --end-token"
    )


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    GPT-2's: printable Latin-1 stands for itself, the 68 other bytes in order for the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(BYTES + n): b for n, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_length(token: str) -> int:
    """Bytes of text behind a byte-level token; of others a guess that ``Tokenizer`` holds against each text."""
    return len(token) if all(character in _ALPHABET for character in token) else len(token.encode())


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; on bytes as GPT-2) of ``vocabulary`` tokens: END, 256 bytes, merges.

    Equal texts give equal tokenizers, whatever the number of threads. Any text comes back as it was. A corpus that is
    too small for so many merges gives fewer tokens.
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer)


def open_tokenizer(reference: str, *, end: str | None = None, size: int = 0) -> Tokenizer:
    """A tokenizer.json, a folder that holds one, or a name on the Hugging Face hub.

    Raises DataError for a file that is none, ConfigError for an end token or a size that does not fit.
    """
    library, path = _library(), Path(reference).expanduser()
    if path.is_dir():
        path = path / FILE
    if not path.is_file() and (path.suffix == ".json" or reference.startswith((".", "/", "~"))):
        raise DataError(f"--tokenizer {reference}: there is no file {path.absolute()}")
    try:
        if not path.is_file():
            path = Path(optional("huggingface_hub", "lm", f"--tokenizer {reference}").hf_hub_download(reference, FILE))
        text = path.read_text(encoding="utf-8")
        _check_ids(json.loads(text))
        found = library.Tokenizer.from_str(text)
    except MissingDependencyError:
        raise
    except BaseException as error:
        # The library raises bare Exception for whatever it cannot read; what it did not expect is a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"--tokenizer {reference} cannot be read as a {FILE}: {first_line(error)}") from error
    return Tokenizer(found, end=end, size=size)


def _check_ids(held: Any) -> None:
    """Refuse ids for which the library would reserve all memory: it has a place for every number below the largest."""
    vocabulary = held["model"].get("vocab", {})
    ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else [])]
    ids += [token["id"] for token in held.get("added_tokens") or []]
    if not all(isinstance(number, int) and 0 <= number < MAX_VOCABULARY for number in ids):
        raise ValueError(f"token ids should be whole numbers from 0 to {MAX_VOCABULARY - 1}")
