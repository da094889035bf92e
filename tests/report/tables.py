"""Made-up tables of compress and evaluate with the hits behind them, as the stages write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.report.synthetic import CLASSES, EXAMPLES, artefact, write

SIZES = {"teacher": 90_000, "baseline": 4000, "int8": 1900, "pruned": 1000}


def hits_of(accuracy: float, first: int = 0) -> np.ndarray[Any, Any]:
    """(EXAMPLES,) of 0 and 1, the wrong ones from ``first`` on."""
    found = np.ones(EXAMPLES, int)
    found[(np.arange(round((1 - accuracy) * EXAMPLES)) + first) % EXAMPLES] = 0
    return found


def details(name: str, hits: np.ndarray[Any, Any], digest: str = "e" * 64) -> dict[str, Any]:
    accuracy = float(hits.mean())
    return {
        "run": name,
        "student": "mlp-8",
        "config": None,
        "split": "test",
        "examples": EXAMPLES,
        "examples_digest": digest,
        "data_digest": "d" * 64,
        "class_names": list(CLASSES),
        "parameters": 1000,
        "seeds": {"0": {"accuracy": accuracy}},
        "confusion": np.eye(4, dtype=int).tolist(),
        "reliability": {"counts": [0, 9, 71], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 0.95]},
        "hits": hits.tolist(),
    }


def rows_of(accuracies: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = []
    for number, (name, accuracy) in enumerate(accuracies.items()):
        row = artefact(name, size=SIZES[name], milliseconds=1.0 / 2**number, accuracy=accuracy)
        row |= {"control": name == "teacher", "source": None if name in ("teacher", "baseline") else "baseline"}
        row |= {"seeds": 1, "accuracy_std": 0.0, "accuracy_interval": [accuracy - 0.05, accuracy + 0.04]}
        wrong = round((1 - accuracy) * EXAMPLES)
        row |= {"mcnemar_teacher": {"only_first": 0, "only_second": wrong, "p_value": 0.0004 if wrong > 9 else 0.5}}
        rows.append({**row, "validation_accuracy": accuracy + 0.01, "nll": 0.5, "ece": 0.05, "parameters": 600})
    return rows


def compressed(
    folder: Path, accuracies: Mapping[str, float], *, seed: int = 0, keep: bool = True, **changes: Any
) -> Path:
    """A directory of compress. ``keep``: with details.json, which holds the hits."""
    environment = {"processor": "A <CPU>", "runtime_threads": 1, "cores": 2, "system": "Linux"}
    table = {"run": "student", "seed": seed, "student": "mlp-8", "test_examples": EXAMPLES, "environment": environment}
    table |= {"recipe": [{"step": "quantise", "name": "int8", "of": "baseline"}], "rows": rows_of(accuracies)}
    table |= {"command": f"softlabels compress --runs student --student-seed {seed}", "front": [], "versions": {}}
    write(folder / "table.json", {**table, **changes})
    if keep:
        models = {name: details(name, hits_of(value, 7 * seed)) for name, value in accuracies.items()}
        write(folder / "details.json", {"models": models})
    return folder


def models(folder: Path, accuracies: Mapping[str, float], corruptions: Sequence[str] = ("contrast", "fog")) -> Path:
    """An evaluation of several models, with corruptions."""
    rows = [{**row, "corrupted_accuracy": row["accuracy"] - 0.2, "mce": 1.0} for row in rows_of(accuracies)]
    robust = {
        f"{row['name']} seed 0": {
            "clean": {"accuracy": row["accuracy"]},
            "by_corruption": {name: {"mean": {"accuracy": row["accuracy"] - 0.25}} for name in corruptions},
        }
        for row in rows
    }
    found = {"baseline": "baseline", "split": "test", "examples": EXAMPLES, "rows": rows}
    found |= {"environment": {"processor": "A <CPU>", "runtime_threads": 1, "versions": {"torch": "2.13.0"}}}
    found |= {"models": {name: details(name, hits_of(value)) for name, value in accuracies.items()}}
    found |= {"robustness": {"corruptions": list(corruptions), "models": robust}}
    write(folder / "details.json", found)
    return folder


LANGUAGE = {"hard": (20.0, 0.30), "sampled": (16.0, 0.45), "full": (15.5, 0.5)}
"""Perplexity and acceptance of made-up language models."""
SEQUENCES, TOKENS = 20, 1280


def language_details(name: str, perplexity: float, acceptance: float, seeds: int = 3) -> dict[str, Any]:
    """What an evaluation keeps of one language model; seed s is worse by s per cent."""
    found = {}
    for seed in range(seeds):
        figures = {"perplexity": perplexity * (1 + seed / 100), "bits_per_byte": perplexity / 8, "accuracy": 0.4}
        figures |= {"nll": float(np.log(perplexity)), "ece": 0.01 * (seed + 1), "brier": 0.7, "kl_to_teacher": 0.2}
        figures |= {"teacher_agreement": 0.6, "acceptance": acceptance, "tokens_per_call": 1 / (1 - acceptance)}
        found[str(seed)] = {**figures, "validation": {"accuracy": 0.4, "nll": figures["nll"]}, "calibrated": None}
    one = details(name, np.zeros(EXAMPLES, int))
    for key in ("confusion", "class_names"):
        one[key] = None
    one |= {"student": "gpt-16", "config": {"data": "tokens:t", "student": "gpt-16", "cache": f"caches/{name}"}}
    one |= {"examples": SEQUENCES, "tokens": TOKENS, "vocabulary": 512, "seeds": found, "units": "tokens"}
    one |= {"hits": [25 * seeds] * SEQUENCES, "positions": [64] * SEQUENCES, "temperature": 1.0}
    teacher = {"accuracy": 0.5, "perplexity": 15.0}
    return {**one, "cache": {"teacher": "gpt-64", "state": "f" * 64}, "teacher": teacher}


def language(folder: Path, *, written: Mapping[str, Any] | None = None, timed: bool = True) -> Path:
    """An evaluation of several language models."""
    kept = {name: language_details(name, *figures) for name, figures in LANGUAGE.items()}
    rows = []
    for number, (name, (perplexity, acceptance)) in enumerate(LANGUAGE.items()):
        row: dict[str, Any] = {"name": name, "what": "gpt-16", "seeds": 3, "parameters": 11_000, "warnings": []}
        row |= {"bytes": 50_000, "perplexity": perplexity, "perplexity_std": 0.2, "bits_per_byte": perplexity / 8}
        row |= {"accuracy": 0.4, "accuracy_std": 0.01, "accuracy_interval": [0.38, 0.42], "nll": 2.9, "ece": 0.02}
        row |= {"teacher_agreement": 0.6, "kl_to_teacher": 0.2, "validation_accuracy": 0.4, "brier": 0.7}
        row |= {"acceptance": acceptance, "tokens_per_call": 1 / (1 - acceptance), "source": None}
        if timed:
            row["latency"] = {size: {"p50": 1.0 + number, "p95": 2.0, "calls": 9} for size in ("1", "32")}
        if number:
            nll = {"difference": -0.223 * number, "half_width": 0.02, "verdict": "lower"}
            row["against_baseline"] = {"difference": 0.0, "half_width": 0.02, "verdict": "within noise", "nll": nll}
        rows.append(row)
    found = {"baseline": "hard", "split": "test", "examples": SEQUENCES, "tokens": TOKENS, "rows": rows}
    found |= {"environment": {"processor": "A <CPU>", "runtime_threads": 1, "versions": {"torch": "2.13.0"}}}
    found |= {"models": kept, "command": "softlabels evaluate hard sampled full", "written": WRITTEN}
    write(folder / "details.json", {**found, **({} if written is None else {"written": written})})
    return folder


WRITTEN: dict[str, Any] = {
    "prompts": ["def <b>f</b>(x):", "class A\x07&amp;:"],
    "ids": ["test/0", "test/9"],
    "text": ["\n    return x", "\n    pass"],
    "teacher": ["\n    return <i>", " teacher"],
    "models": {name: [f"\n    {name} </pre><script>alert(1)</script>", f"{name} goes on"] for name in LANGUAGE},
    "left_out": {"int8": "a file", "int4": "a file"},
    "prompt_tokens": 32,
    "tokens": 64,
    "temperature": 0.8,
    "top_k": 40,
    "seed": 0,
}
