"""Which token a server means: ids of token texts, where the text alone says it.

Servers name tokens by what they decode to. Several tokens may decode to the same text, and a token that holds part of
a character decodes to U+FFFD: neither says which it was, and guessing would put a probability on the wrong class. The
bytes that OpenAI sends beside the text tell the parts of characters apart; vLLM's ``bytes`` are those of the text, and
do not. ``return_tokens_as_token_ids`` of a vLLM server sends ``token_id:123`` instead, which is never ambiguous.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.errors import DataError

PREFIX = "token_id:"
LOST = "\N{REPLACEMENT CHARACTER}"
ASK = 'Ask the server for ids: "return_tokens_as_token_ids": true (vLLM), or give its ids in records of our own'


class Vocabulary:
    """V tokens in the order of their ids, each by the bytes that it stands for."""

    def __init__(self, tokens: Iterable[bytes | str]) -> None:
        """``tokens``: what each id decodes to on its own, bytes where it is no whole text."""
        self._ids: dict[bytes, int] = {}
        self._several: dict[bytes, list[int]] = {}
        self.size = 0
        for number, token in enumerate(tokens):
            key = token if isinstance(token, bytes) else token.encode()
            if key in self._ids:
                self._several.setdefault(key, [self._ids[key]]).append(number)
            self._ids.setdefault(key, number)
            self.size += 1

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """The vocabulary of a ``tokenizers.Tokenizer``, added tokens included."""
        described = json.loads(tokenizer.to_str())
        added: dict[int, bytes] = {
            token["id"]: token["content"].encode() for token in described.get("added_tokens") or ()
        }
        by_bytes = "ByteLevel" in json.dumps(described.get("decoder"))

        def token(number: int) -> bytes:
            if number in added:
                return added[number]
            name = tokenizer.id_to_token(number)
            if name is None:
                return f"{PREFIX}{number}".encode()
            found = byte_level(name) if by_bytes else None
            return str(tokenizer.decode([number], skip_special_tokens=False)).encode() if found is None else found

        return cls(token(number) for number in range(tokenizer.get_vocab_size()))

    def id_of(self, token: str, exact: Sequence[int] | None = None) -> int:
        """The id of a token as a server names it; ``exact``: its bytes, where they were sent.

        Raises DataError for a text that no token, or more than one, decodes to.
        """
        if token.startswith(PREFIX) and token.removeprefix(PREFIX).isascii() and token.removeprefix(PREFIX).isdigit():
            number = int(token.removeprefix(PREFIX)[:20])
            if number >= self.size:
                raise DataError(
                    f"{token} should lie below {self.size:,}, the vocabulary. Is it this teacher's tokenizer?"
                )
            return number
        key = token.encode(errors="surrogatepass")
        if exact is not None:
            try:
                key = bytes(exact)
            except (TypeError, ValueError):
                raise DataError(f"the bytes of token {token!r} should be numbers of 0 to 255; found {exact}") from None
        if key in self._several:
            raise DataError(f"token {token!r} may be any of the ids {self._several[key][:8]}. {ASK}")
        if key not in self._ids:
            lost = " It holds part of a character only." if LOST in token else " Is it this teacher's tokenizer?"
            raise DataError(f"no token of this vocabulary of {self.size:,} decodes to {token!r}.{lost} {ASK}")
        return self._ids[key]


def byte_level(name: str) -> bytes | None:
    """The bytes of a token of a byte-level BPE by its name; None where it has other characters.

    >>> byte_level("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}the"), byte_level("\\u2581the")
    (b' the', None)
    """
    try:
        return bytes(_BYTE_OF[character] for character in name)
    except KeyError:
        return None


def _alphabet() -> dict[str, int]:
    """GPT-2's names of the 256 bytes: printable Latin-1 as it is, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _alphabet()
