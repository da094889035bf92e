"""A small teacher of token sequences, its packing contract and its cache; and the same teacher as a server answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.datasets import Tokens, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.models import build_model, load_weights, save_weights
from pipeline.store import Cache, open_cache
from pipeline.tokenize import TokenizeConfig, run

TEACHER = {"teacher": "gpt-16", "teacher_args": ("layers=1",)}


def contract(out: Path, **options: Any) -> Tokens:
    """Questions that are not scored and answers that are: sequences of uneven length, over about 300 tokens."""
    words = np.array(["red", "green", "blue", "one", "two", "three", "café", "sum(", ")", "\n"])
    random = np.random.default_rng(0)
    pairs = [(" ".join(random.choice(words, random.integers(1, 5))), int(random.integers(2, 9))) for _ in range(48)]
    documents = [{"q": f"{text}?", "a": " ".join([text] * (n // 2) + ["."] * (n % 2 + 1))} for text, n in pairs]
    text = out.parent / f"{out.name}.jsonl"
    text.write_text("".join(json.dumps(document) + "\n" for document in documents))
    asked: dict[str, Any] = {"packing": "documents", "length": 24, "vocabulary": 300, "held_out": 0.25, **options}
    if "tokenizer" in options:
        del asked["vocabulary"]
    run(TokenizeConfig(text=(str(text),), prompt="q", completion="a", out=out, **asked))
    found = load_dataset(f"tokens:{out}")
    assert isinstance(found, Tokens)
    return found


def teacher(weights: Path, data: Tokens, seed: int = 0) -> nn.Module:
    """A gpt that has seen the data a few times, saved to ``weights``, or what is there."""
    made = build_model("gpt-16", {"layers": 1}, classes=len(data.classes), input_shape=data.input_shape, discrete=True)
    if weights.exists():
        load_weights(made, weights)
        return made.eval()
    rows = data.rows("train")
    x, targets = torch.stack([data.load(int(row)) for row in rows]), torch.from_numpy(data.targets(rows))
    optimiser = torch.optim.Adam(made.parameters(), lr=0.03)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(made(x).flatten(0, 1), targets.flatten(), ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_weights(weights, made, {})
    return made.eval()


def dumped(out: Path, data: Tokens, weights: Path, **options: Any) -> Cache:
    """A cache of the teacher."""
    asked: dict[str, Any] = {**TEACHER, "part_size": 7, "batch_size": 5, "device": "cpu", **options}
    dump(DumpConfig(data=data.name, weights=weights, out=out, **asked))
    return open_cache(out)


def logprobs_of(model: nn.Module, data: Tokens, row: int) -> tuple[list[int], np.ndarray[Any, Any]]:
    """All T tokens of a sequence, and the log-probabilities (T - 1, V) of the next ones in float64."""
    held = data.read(row)
    tokens = np.frombuffer(held, "<u4", (len(held) + 1) // 5).astype(np.int64)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[:-1])[None])[0]
    return tokens.tolist(), torch.log_softmax(logits.double(), dim=1).numpy()


def answer(model: nn.Module, data: Tokens, row: int, top: int = 20) -> dict[str, Any]:
    """What ``vllm serve`` says of a sequence to ``"prompt_logprobs": top, "return_token_ids": true``."""
    tokens, said = logprobs_of(model, data, row)
    positions: list[dict[str, Any] | None] = [None]
    for place, values in enumerate(said):
        order = np.argsort(-values, kind="stable")
        ranks = {int(token): rank for rank, token in enumerate(order, 1)}
        chosen = [*order[:top].tolist(), *([tokens[place + 1]] if ranks[tokens[place + 1]] > top else [])]
        positions.append(
            {
                str(token): {
                    "logprob": float(np.float32(values[token])),
                    "rank": ranks[token],
                    "decoded_token": data.classes[token],
                }
                for token in chosen
            }
        )
    choice = {"index": 0, "text": "", "prompt_token_ids": tokens, "token_ids": [0], "prompt_logprobs": positions}
    return {"id": f"cmpl-{row}", "object": "text_completion", "model": "gpt-16", "choices": [choice]}


def answers(path: Path, model: nn.Module, data: Tokens, rows: Any = None, *, named: bool = True, top: int = 20) -> Path:
    """A line for each of ``rows``, beside its id where it is ``named``."""
    with open(path, "w", encoding="utf-8") as file:
        for row in range(len(data)) if rows is None else rows:
            said = answer(model, data, row, top)
            file.write(json.dumps({"id": data.ids[row], "response": said} if named else said) + "\n")
    return path
