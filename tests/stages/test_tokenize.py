"""``softlabels tokenize`` as a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.datasets import load_dataset
from pipeline.datasets.tokens import corpus as corpora
from pipeline.datasets.tokens.documents import Document
from pipeline.tokenize import TokenizeConfig
from stages.cli import main
from tests.datasets.token_texts import write_texts

pytest.importorskip("tokenizers")


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_texts(tmp_path / "texts", 12)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["tokenize", *arguments])


SMALL = ("--vocabulary", "290", "--length", "16")


def test_made_found_finished_refused_and_overwritten(texts: Path, tmp_path: Path) -> None:
    first = invoke("--text", "texts", *SMALL, "--out", "out")
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("out: ") and " sequences, " in first.stdout and " bytes per token, " in first.stdout
    assert "tokens of bpe-290, " in first.stdout and len(first.stdout.splitlines()) == 1
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    report = json.loads(Path("out.report.json").read_text())
    assert set(report["environment"]) == {"python", "tokenizers"} and report["seconds"] > 0
    again = invoke("--text", "texts", *SMALL, "--out", "out", "--json")
    assert json.loads(again.stdout)["seconds"] == 0 and json.loads(Path("out.report.json").read_text()) == report
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    for other in (("--length", "8"), ("--score-boundaries",), ("--held-out", "0.3"), ("--max-documents", "9")):
        refused = invoke("--text", "texts", *SMALL, *other, "--out", "out")
        assert refused.exit_code == 2 and "--overwrite" in refused.stderr, other
    (texts / "new.txt").write_text("more text")
    assert "--overwrite" in invoke("--text", "texts", *SMALL, "--out", "out").stderr
    done = invoke("--text", "texts", *SMALL, "--out", "out", "--overwrite")
    assert done.exit_code == 0 and "texts/new.txt" in Path("out/documents.txt").read_text()
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(".out")]


def test_what_is_somebody_elses_is_left_alone(texts: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years")
    for extra in ((), ("--overwrite",)):
        refused = invoke("--text", "texts", *SMALL, "--out", "out", *extra)
        assert refused.exit_code == 2 and Path("out/thesis.tex").read_text() == "years"


def test_the_defaults_tokenize_the_standard_library(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its sources replaced by a few texts, so that it takes no time; the rest as it is."""
    held = [Document(f"stdlib/{path.name}", path.read_text()) for path in sorted(texts.iterdir())]
    monkeypatch.setattr(corpora, "read_stdlib", lambda left_out: iter(held))
    done = invoke("--out", "tokens", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)["record"]
    assert record["text"]["sources"] == ["stdlib"] and record["text"]["python"] == sys.version.split()[0]
    assert record["packing"] == {"kind": "packed", "length": 256, "score_boundaries": False, "truncate": False}
    dataset = load_dataset("tokens:tokens")
    assert dataset.input_shape[0] <= 256 and len(dataset.classes) <= 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "q"), "--prompt and --completion go together"),
        (("--prompt", "q", "--completion", "a", "--field", "body"), "--field is not read"),
        (("--hf-split", "train"), "--hf-config and --hf-split are of"),
        (("--held-out", "1"), "--held-out should be"),
        (("--max-bytes", "-1"), "--max-bytes should be at least 0"),
        (("--tokenizer", "t.json", "--vocabulary", "999"), "--vocabulary is of a tokenizer that is trained here"),
        (("--end-token", "</s>"), "--end-token and --pad-vocabulary are of"),
        (("--vocabulary", "256"), "--vocabulary should be at least 257"),
        (("--length", "0"), "--length should be 1 to"),
        (("--packing", "documents", "--score-boundaries"), "--score-boundaries is of --packing packed"),
        (("--truncate",), "--truncate is of --packing documents"),
        (("--packing", "loose"), "--packing should be one of packed, documents"),
        (("--text", "nowhere"), "--text nowhere: there is no such file"),
        (("--out", "s3://bucket/tokens"), "--out should be a local directory"),
    ],
)
def test_wrong_usage(texts: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke("--out", "out", *options)
    assert result.exit_code == 2 and message in result.stderr and not Path("out").exists()


def test_data_that_cannot_be_used(texts: Path) -> None:
    Path("t.json").write_text("{}")
    Path("held.jsonl").write_text('{"text": "abc", "s": "test"}\n')
    Path("prompts.jsonl").write_text('{"p": "a long prompt", "c": "x"}\n')
    cut = ("--packing", "documents", "--length", "2", "--truncate", "--prompt", "p", "--completion", "c")
    for options, message in (
        (("--text", "texts", "--tokenizer", "t.json"), "t.json cannot be read as a tokenizer.json"),
        (("--text", "held.jsonl", "--split-field", "s"), "has no training documents"),
        (("--text", "prompts.jsonl", "--held-out", "0", "--vocabulary", "257", *cut), "has no token to predict"),
    ):
        result = invoke(*options, "--out", "out")
        assert result.exit_code == 1 and message in result.stderr and not Path("out").exists(), result.output


def test_without_the_library_the_extra_is_named(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    result = invoke("--text", "texts", "--out", "out")
    assert result.exit_code == 1 and "pip install 'softlabels[lm]'" in result.stderr


def test_options_and_their_classes_agree() -> None:
    config = TokenizeConfig(out=Path("o"), text=("a", "hf:b"), hf_split=("train",), packing="documents", truncate=True)
    assert config.corpus.hub_splits == ("train",) and config.how.truncate and config.corpus.columns.body == "text"
