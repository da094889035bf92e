"""Teacher top-logprobs as servers return them: JSON lines, each a record of our own, or a response of a server.

A record of our own has ids, so that no tokenizer is needed; item j of ``top_ids`` and ``top_logprobs`` is about token
j + 1, null where it was not scored::

    {"id": "a", "token_ids": [5, 7, 9], "top_ids": [[7, 2], [9, 1]], "top_logprobs": [[-0.1, -3.0], [-0.7, -0.9]]}

A response stands alone, or as ``{"id": ..., "request": {...}, "response": {...}}``, or as a line of a batch's output
file (``custom_id``, ``response.body``). Each of its choices is an example, ``ID`` or, of several, ``ID/0``, ``ID/1``:

- vLLM's ``prompt_logprobs`` (of a choice, of a chat response itself): a list by token of the prompt, the first null,
  of ``{"123": {"logprob": -0.5, "rank": 1, "decoded_token": " a"}}``: the largest, and the token of the text where it
  is not among them, so that some positions have one more;
- legacy completions, ``logprobs.top_logprobs``: a list of ``{token: logprob}``, with ``echo`` for the prompt too;
- chat completions, ``logprobs.content``: a list of items with ``top_logprobs``, a list of ``{token, logprob, bytes}``.

Tokens are ``token_id:123``, or texts, which a ``Vocabulary`` turns into ids or refuses. What was generated is scored
where the sequence begins with a known prompt: ``prompt_token_ids`` (``return_token_ids`` of vLLM), or ``prompt`` of
the request as ids.

Sources: github.com/vllm-project/vllm at 030ea52, vllm/entrypoints/openai/completion/serving.py, and at 002032e,
.../completion/protocol.py; OpenAI's API reference, "Chat Completions" and "Completions". Both write -9999.0 for -inf.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.caches.importing.kept import LOWEST
from pipeline.caches.importing.logprobs import Scored, Wide
from pipeline.caches.importing.vocabulary import Vocabulary
from pipeline.errors import DataError

Named = tuple[Sequence[Any], Sequence[Any]]
"""Ids of classes and their log-probabilities, of one position: as many of both, and looked at in ``_scored``."""

LIMIT = 1 << 31
MAX_LINE = 1 << 30


def read_toplogprobs(
    path: Path, vocabulary: Vocabulary | None = None, begin: int | None = None
) -> Iterator[tuple[int, Scored]]:
    """The scored sequences of a file, in its order, or of the line that begins at byte ``begin``, each with the byte
    where its line begins. Choices without a scored position are left out.

    Raises DataError, naming the line: no JSON, another shape, tokens that are ambiguous or need a ``vocabulary``.
    """
    try:
        with open(path, "rb") as file:
            start = begin or 0
            file.seek(start)
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                where = f"{path}, line {number:,}" if begin is None else f"{path}, byte {begin:,}"
                if line.strip():
                    yield from ((start, scored) for scored in _of_line(line, where, vocabulary))
                if begin is not None:
                    return
                start += len(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _of_line(line: bytes, where: str, vocabulary: Vocabulary | None) -> Iterator[Scored]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} should be one JSON object: {error}") from None
    try:
        record = _mapping(value)
        if "top_ids" in record:
            yield _own(record)
        else:
            yield from _responded(record, vocabulary)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _own(record: Mapping[str, Any]) -> Scored:
    tokens = _ids(record.get("token_ids"), "token_ids")
    tops, values = (_list(record.get(name), name) for name in ("top_ids", "top_logprobs"))
    if not len(tops) == len(values) == len(tokens) - 1:
        raise DataError(
            f"top_ids and top_logprobs should have an item for each of the {len(tokens)} tokens but the first; found "
            f"{len(tops)} and {len(values)}"
        )
    named: list[Named | None] = []
    for ids, logprobs in zip(tops, values, strict=True):
        if ids is None or logprobs is None:
            named.append(None)
            continue
        ids, logprobs = _list(ids, "top_ids"), _list(logprobs, "top_logprobs")
        if len(ids) != len(logprobs):
            raise DataError(f"a position has {len(ids)} ids and {len(logprobs)} log-probabilities")
        named.append((ids, logprobs))
    return _scored(_id(record.get("id")), tokens, [None, *named])


def _responded(record: Mapping[str, Any], vocabulary: Vocabulary | None) -> Iterator[Scored]:
    """The choices of a response, whatever it is wrapped in."""
    response = _mapping(record.get("response", record))
    if record.get("error") is not None or response.get("status_code", 200) != 200:
        raise DataError("this request failed: leave the line out, or ask again")
    body = _mapping(response.get("body", response))
    name = next((record[key] for key in ("custom_id", "id") if record.get(key) is not None), body.get("id"))
    request = _mapping(record.get("request") or {})
    request = _mapping(request.get("body", request))
    choices = _list(body.get("choices"), "choices")
    for number, choice in enumerate(choices):
        choice = _mapping(choice)
        prompt = next((found for found in (choice, body) if found.get("prompt_token_ids") is not None), {})
        given = request.get("prompt") if isinstance(request.get("prompt"), list) else None
        ids = prompt.get("prompt_token_ids", given)
        scored = choice.get("prompt_logprobs") or body.get("prompt_logprobs")
        tokens, named = _sequence(choice, None if ids is None else _ids(ids, "prompt_token_ids"), scored, vocabulary)
        if any(said and said[0] for said in named):
            yield _scored(_id(name) if len(choices) == 1 else f"{_id(name)}/{number}", tokens, named)


def _sequence(
    choice: Mapping[str, Any], prompt: list[int] | None, scored: Any, vocabulary: Vocabulary | None
) -> tuple[list[int], list[Named | None]]:
    """The tokens of prompt and answer, and what was said of each, None where nothing was."""
    answer, said = _generated(choice, vocabulary)
    wanted = _list(choice["token_ids"], "token_ids") if choice.get("token_ids") is not None else None
    echoed = prompt is not None and wanted is not None and len(answer) == len(prompt) + len(wanted)
    if echoed or (said and said[0] is None):  # the prompt is among them: the first token has no distribution
        return (list(prompt or []) + _ids(wanted, "token_ids") if echoed else answer), said
    if scored is None and said and prompt is None:
        raise DataError(
            "what was generated goes on from a prompt, whose tokens are needed. Ask with "
            '"return_token_ids": true (vLLM), or put the prompt as ids into "request": {"prompt": [...]}'
        )
    head: list[Named | None] = [None] * len(prompt or [])
    if scored is not None:
        head = [None if item is None else _ranked(item) for item in _list(scored, "prompt_logprobs")]
        if prompt is None:
            raise DataError('prompt_logprobs needs prompt_token_ids: ask with "return_token_ids": true')
        if len(head) != len(prompt):
            raise DataError(f"prompt_logprobs has {len(head)} items, and prompt_token_ids {len(prompt)}")
    return [*(prompt or []), *answer], [*head, *said]


def _generated(choice: Mapping[str, Any], vocabulary: Vocabulary | None) -> tuple[list[int], list[Named | None]]:
    """The tokens that ``logprobs`` of a choice speaks of, and what it says of each."""
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return [], []
    logprobs = _mapping(logprobs)
    if logprobs.get("content") is not None:
        items = [_mapping(item) for item in _list(logprobs["content"], "logprobs.content")]
        tops_of = [[_mapping(top) for top in _list(item.get("top_logprobs"), "top_logprobs")] for item in items]
        return (
            [_token(item.get("token"), item.get("bytes"), vocabulary) for item in items],
            [
                ([_token(t.get("token"), t.get("bytes"), vocabulary) for t in tops], [t.get("logprob") for t in tops])
                for tops in tops_of
            ],
        )
    tokens, tops = (_list(logprobs.get(name), f"logprobs.{name}") for name in ("tokens", "top_logprobs"))
    if len(tokens) != len(tops):
        raise DataError(f"logprobs has {len(tokens)} tokens and {len(tops)} top_logprobs")
    return (
        [_token(token, None, vocabulary) for token in tokens],
        [
            None if top is None else ([_token(t, None, vocabulary) for t in _mapping(top)], list(top.values()))
            for top in tops
        ],
    )


def _ranked(item: Any) -> Named:
    """One position of vLLM's ``prompt_logprobs``."""
    tokens = list(_mapping(item))
    for token in tokens:
        if not (token.isascii() and token.isdigit() and len(token) < 11):
            raise DataError(f"prompt_logprobs should have token ids as its keys; found {token!r:.40}")
    return list(map(int, tokens)), [_mapping(said).get("logprob") for said in item.values()]


def _scored(name: str, tokens: list[int], named: Sequence[Named | None]) -> Scored:
    """``named``: by token; what is said of token p + 1 is scored at position p."""
    if not tokens or len(tokens) != len(named) or (named[0] and named[0][0]):
        found = f"{len(tokens)} tokens and {len(named)} distributions"
        raise DataError(f"every token but the first should have a distribution, or null; found {found}")
    rows = [(row, said) for row, said in enumerate(named) if said and said[0]]
    if not rows:
        raise DataError("no position is scored")
    return Scored(
        id=name,
        token_ids=np.array(tokens, np.int64),
        positions=np.array([row for row, _ in rows], np.int64) - 1,
        counts=np.array([len(ids) for _, (ids, _) in rows], np.int64),
        ids=np.array(_ids([token for _, (ids, _) in rows for token in ids], "top_ids"), np.int64),
        logprobs=_logprobs([value for _, (_, values) in rows for value in values]),
    )


def _token(token: Any, exact: Any, vocabulary: Vocabulary | None) -> int:
    if not isinstance(token, str):
        raise DataError(f"a token should be a text; found {token!r:.40}")
    if vocabulary is None:
        raise DataError(f"token {token!r} is a text: which id that is, the teacher's tokenizer says (--tokenizer)")
    return vocabulary.id_of(token, exact)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"an object was expected; found {value!r:.60}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{name} should be a list; found {value!r:.60}")
    return value


def _ids(value: Any, name: str) -> list[int]:
    found = _list(value, name)
    if not {*map(type, found)} <= {int} or (found and not 0 <= min(found) <= max(found) < LIMIT):
        wrong = next(item for item in found if type(item) is not int or not 0 <= item < LIMIT)
        raise DataError(f"{name} should hold token ids; found {wrong!r:.40}")
    return found


def _logprobs(values: list[Any]) -> Wide:
    wrong = [value for value in values if type(value) is not float and not (type(value) is int and -LIMIT < value < 1)]
    found = np.array([] if wrong else values, np.float64)
    wrong += found[~(found <= 1e-6)].tolist()
    if wrong:
        raise DataError(f"a log-probability should be a number of 0 or less; found {wrong[0]!r:.40}")
    return np.clip(found, LOWEST, 0.0)


def _id(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise DataError(f"an example should have an id; found {value!r:.40}")
    return str(value)
