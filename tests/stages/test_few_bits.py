"""Top-k labels of four bits by the commands: dumped, verified against the teacher, and learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline import open_cache
from pipeline.encodings import TopK
from stages.cli import main


def test_a_dump_of_four_bits_is_true_and_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def ran(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(main, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    ran("fit-teacher", "--teacher", "mlp-16", "--epochs", "2", "--views", "0", "--threads", "1", "--out", "teacher")
    weights = ["--teacher", "mlp-16", "--weights", "teacher/model.safetensors"]
    kept = ["--encoding", "topk", "--dtype", "int4", "--k", "9"]
    dumped = ran("dump", *weights, *kept, "--threads", "1", "--out", "cache")
    assert dumped["fidelity"]["top1_agreement"] > 0.99 and 0 < dumped["fidelity"]["kl"]["1"]["mean"] < 0.02
    assert ran("cache", "verify", "cache", *weights)["ok"]
    cache = open_cache("cache")
    assert cache.encoding == TopK(9, "int4", (1.0, 4.0)) and cache.manifest.format == 3
    assert cache.read_part(0)["values"].shape[1] == 5
    logprobs, residual = cache.decode(cache.read_part(0)).at(4.0)
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1) + np.exp(residual), 1.0, atol=1e-5)
    train = ["--student", "mlp-8", "--epochs", "1", "--train-views", "all", "--threads", "1"]
    ran("train", "--cache", "cache", *train, "--out", "run")
