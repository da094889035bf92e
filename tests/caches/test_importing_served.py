"""A teacher that is served elsewhere: its answers become the cache that a dump of it would have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.caches.importing import ImportConfig
from pipeline.caches.transcode import TranscodeConfig
from pipeline.caches.transcode import run as run_transcode
from pipeline.datasets import Tokens, load_dataset
from pipeline.encodings import TopK
from pipeline.errors import CacheMismatchError, ConfigError, DataError
from pipeline.importing import run
from pipeline.sources import match
from pipeline.store import Cache, open_cache
from pipeline.store.verify import verify
from stages.cache import command
from tests.served import answers, contract, dumped, logprobs_of, teacher


class Served(NamedTuple):
    root: Path
    data: Tokens
    model: torch.nn.Module
    lines: Path
    dump: Cache


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("served")
    data = contract(root / "tokens")
    model = teacher(root / "teacher.safetensors", data)
    # In another order than the contract's.
    rows = np.random.default_rng(1).permutation(len(data))
    lines = answers(root / "answers.jsonl", model, data, rows)
    dump = dumped(
        root / "dump",
        data,
        root / "teacher.safetensors",
        encoding="topk",
        k=20,
        temperature=(1.0,),
        splits=("train", "validation", "test"),
    )
    return Served(root, data, model, lines, dump)


def imported(served: Served, out: Path, **options: Any) -> Cache:
    asked: dict[str, Any] = {"source": str(served.lines), "data": served.data.name, "part_size": 7, **options}
    run(ImportConfig(out=out, **asked))
    return open_cache(out)


def labels(cache: Cache, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, probabilities, residual of all positions of a split."""
    soft = cache.decode(cache.read_rows(split, 0, np.arange(cache.examples(split))))
    logprobs, residual = soft.at(1.0)
    return soft.ids, np.exp(logprobs), np.exp(residual)


def test_the_import_is_what_a_dump_keeps_to_float_rounding(served: Served, tmp_path: Path) -> None:
    cache = imported(served, tmp_path / "cache", made_at=1.0, teacher="gpt-16")
    assert verify(cache).ok
    assert cache.splits() == served.dump.splits() and cache.identity["data"] == served.dump.identity["data"]
    for name in ("class_names", "preprocessing", "encoding", "splits"):
        assert cache.identity[name] == served.dump.identity[name], name
    assert cache.identity["views"] == {**served.dump.identity["views"], "plain": True}
    for split in cache.splits():
        assert cache.ids(split) == served.dump.ids(split)
        assert cache.input_digests(split) == served.dump.input_digests(split)
        assert (cache.lengths(split) == served.dump.lengths(split)).all()
        for ours, theirs in zip(labels(cache, split), labels(served.dump, split), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)
    assert cache.manifest.fidelity["teacher_accuracy"] == pytest.approx(
        served.dump.manifest.fidelity["teacher_accuracy"]
    )
    found = match(cache, served.data)
    assert found.unchecked == () and (found.entry_of[found.rows] == np.arange(len(found.rows))).all()
    step = cache.manifest.lineage[-1]
    assert step["unknown"] == ["weights", *(u for u in step["unknown"] if u.startswith("residual"))]
    assert step["options"]["data"] == served.data.digest()


def test_labels_are_the_teachers_own(served: Served, tmp_path: Path) -> None:
    cache = imported(served, tmp_path / "cache", k=12, dtype="float16", store="parquet")
    data, (row, *_) = served.data, served.data.rows("validation").tolist()
    entry = cache.ids("validation").index(data.ids[row])
    soft = cache.decode(cache.read_rows("validation", 0, np.array([entry])))
    _, said = logprobs_of(served.model, data, row)
    scored = np.flatnonzero(data.targets(np.array([row]))[0] >= 0)
    logprobs, residual = soft.at(1.0)
    for place, ids, p, rest in zip(
        scored, soft.ids, np.exp(logprobs), np.exp(residual[:, 0] if residual.ndim > 1 else residual), strict=True
    ):
        assert {*ids.tolist()} == {*np.argsort(-said[place])[:12].tolist()}
        np.testing.assert_allclose(p, np.exp(said[place][ids]), atol=cache.manifest.bound)
        assert rest == pytest.approx(1 - np.exp(said[place][ids]).sum(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_few_bits_are_those_of_a_dump_in_few_bits(served: Served, tmp_path: Path, dtype: str) -> None:
    cache = imported(served, tmp_path / "cache", dtype=dtype, k=12)
    assert verify(cache).ok and cache.manifest.format == 3 and cache.encoding == TopK(12, dtype)
    exact = imported(served, tmp_path / "exact", k=12)
    from_exact = transcoded(exact, tmp_path / "again", dtype)
    for split in cache.splits():
        ours, theirs, again = (labels(each, split) for each in (cache, exact, from_exact))
        assert (ours[0] == theirs[0]).all()
        assert 0 < np.abs(ours[1] - theirs[1]).max() <= cache.manifest.bound
        for mine, other in zip(ours, again, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)


def transcoded(cache: Cache, out: Path, dtype: str) -> Cache:
    """The same labels, imported in full and put into few bits afterwards."""
    run_transcode(TranscodeConfig(cache=cache.address, out=out, dtype=dtype))
    return open_cache(out)


def test_without_a_contract_one_is_written_and_is_the_same_data(served: Served, tmp_path: Path) -> None:
    tokenizer = served.root / "tokens" / "tokenizer.json"
    lines = answers(tmp_path / "some.jsonl", served.model, served.data, served.data.rows("train"))
    options: dict[str, Any] = {"source": str(lines), "data": None, "tokenizer": str(tokenizer)}
    cache = imported(served, tmp_path / "cache", tokens_out=tmp_path / "tokens", **options)
    data = load_dataset(f"tokens:{tmp_path / 'tokens'}")
    assert isinstance(data, Tokens) and data.classes == served.data.classes
    rows = served.data.rows("train")
    assert [*data.ids] == [served.data.ids[row] for row in rows]
    for number, row in enumerate(rows):  # a server answers for the whole prompt, whatever somebody scores of it
        held = served.data.read(row)
        assert data.read(number) == held[: 4 * ((len(held) + 1) // 5)] + bytes([1]) * (len(held) // 5)
        text = served.data.text_of(logprobs_of(served.model, served.data, row)[0][1:]).replace("<|end|>", "")
        assert data.bytes_of(np.array([number])).tolist() == [len(text.encode())]
    assert match(cache, data).unchecked == () and cache.identity["data"]["digest"] == data.digest()
    with pytest.raises(CacheMismatchError, match="made from other text"):
        match(cache, served.data)
    assert verify(cache).ok
    imported(served, tmp_path / "cache", tokens_out=tmp_path / "tokens", **options)  # both are found finished
    with pytest.raises(ConfigError, match=r"--tokens-out .* holds the result"):
        imported(served, tmp_path / "other", tokens_out=tmp_path / "tokens", **options, split="test")


def test_what_was_generated_is_scored_and_what_was_asked_is_not(served: Served, tmp_path: Path) -> None:
    """A chat completion that names its tokens by their texts, with the prompt's ids."""
    data, row = served.data, int(served.data.rows("train")[0])
    tokens, said = logprobs_of(served.model, data, row)
    begin = int(np.flatnonzero(data.targets(np.array([row]))[0] >= 0)[0]) + 1
    content = [
        {"token": f"token_id:{tokens[place + 1]}", "logprob": float(said[place][tokens[place + 1]]), "top_logprobs": [
            {"token": f"token_id:{token}", "logprob": float(said[place][token])}
            for token in np.argsort(-said[place])[:5]
        ]}
        for place in range(begin - 1, len(tokens) - 1)
    ]  # fmt: skip
    choice = {"message": {}, "logprobs": {"content": content}}
    lines = tmp_path / "chat.jsonl"
    lines.write_text(json.dumps({"id": "chat", "prompt_token_ids": tokens[:begin], "choices": [choice]}) + "\n")
    options: dict[str, Any] = {"source": str(lines), "data": None, "tokenizer": str(served.root / "tokens")}
    cache = imported(served, tmp_path / "cache", tokens_out=tmp_path / "tokens", **options)
    own = load_dataset(f"tokens:{tmp_path / 'tokens'}")
    assert own.read(0) == data.read(row) and cache.input_digests("train") == [data.content_digest(row)]
    assert cache.encoding.describe()["k"] == 5


def test_answers_without_ids_are_joined_by_their_tokens(served: Served, tmp_path: Path) -> None:
    rows = served.data.rows("train")[::2]
    lines = answers(tmp_path / "some.jsonl", served.model, served.data, rows, named=False)
    cache = imported(served, tmp_path / "cache", source=str(lines))
    assert cache.ids("train") == [served.data.ids[row] for row in rows]
    missing = (
        f"labels of {len(served.data.rows('train')) - len(rows)} of {len(served.data.rows('train'))} train sequences"
    )
    assert missing in cache.manifest.lineage[-1]["unknown"]
    with pytest.raises(CacheMismatchError, match="no train labels for"):
        match(cache, served.data)
    assert match(cache, served.data, missing="skip").rows.tolist() == rows.tolist()


def test_what_does_not_belong_together_is_refused(served: Served, tmp_path: Path) -> None:
    other = contract(tmp_path / "other", length=16)
    with pytest.raises(DataError, match=r"has other tokens than|no sequence that is wanted"):
        imported(served, tmp_path / "c", data=other.name)
    with pytest.raises(DataError, match=r"has 2[01] classes; 22 are to be kept"):
        imported(served, tmp_path / "c", k=22)
    with pytest.raises(ConfigError, match="--data should be a packing contract"):
        imported(served, tmp_path / "c", data="digits")
    with pytest.raises(ConfigError, match="--encoding dense needs all classes"):
        imported(served, tmp_path / "c", encoding="dense")
    with pytest.raises(ConfigError, match="--plain: token sequences"):
        imported(served, tmp_path / "c", plain=True)
    with pytest.raises(ConfigError, match="give --classes"):
        imported(served, tmp_path / "c", data=None)
    with pytest.raises(ConfigError, match="--data says what --tokenizer would say"):
        imported(served, tmp_path / "c", tokenizer="x")
    with pytest.raises(ConfigError, match="--tokens-out needs the --tokenizer"):
        imported(served, tmp_path / "c", data=None, tokens_out=tmp_path / "t")
    np.savez(tmp_path / "x.npz", logits=np.zeros((2, 3), np.float32), ids=np.array(["a", "b"]))
    with pytest.raises(ConfigError, match="--data is of token sequences"):
        imported(served, tmp_path / "c", source=str(tmp_path / "x.npz"))
    assert not (tmp_path / "c").exists()


def test_sums_above_1_are_counted_and_too_large_ones_name_their_place(served: Served, tmp_path: Path) -> None:
    record: dict[str, Any] = {"id": "a", "token_ids": [5, 7, 9], "top_ids": [[7, 2], [9, 1]]}
    lines = tmp_path / "own.jsonl"
    lines.write_text(json.dumps({**record, "top_logprobs": [[np.log(0.5), np.log(0.504)], [-0.7, -0.9]]}) + "\n")
    cache = imported(served, tmp_path / "cache", source=str(lines), data=None, classes=10)
    said = cache.manifest.lineage[-1]["source"]
    assert said["positions above 1"] == 1 and said["most above 1"] == pytest.approx(0.004)
    assert {"teacher", "class names", "preprocessing"} <= {*cache.manifest.lineage[-1]["unknown"]}
    assert cache.class_names == () and cache.manifest.knows_content
    ids, p, residual = labels(cache, "train")
    assert ids.tolist() == [[2, 7], [1, 9]] and p[0].sum() == pytest.approx(1) and residual.reshape(-1)[0] == 0
    lines.write_text(json.dumps({**record, "top_logprobs": [[-0.7, -0.9], [-0.5, -0.5]]}) + "\n")
    with pytest.raises(
        Exception, match="scored position 1 of example a of train: the probabilities of a position come"
    ):
        imported(served, tmp_path / "other", source=str(lines), data=None, classes=10)


def test_distillkit_is_held_against_a_contract_by_its_tokens(served: Served, tmp_path: Path) -> None:
    """The capture that comes with the tests has its own vocabulary: a contract of just its tokens."""
    from pipeline.caches.importing import Known
    from pipeline.caches.importing import run as build
    from pipeline.caches.importing.distillkit import read_distillkit
    from pipeline.caches.importing.distillkit_config import Compression
    from pipeline.caches.importing.expected import Expected

    folder = Path(__file__).parent / "foreign" / "distillkit"
    options = Compression.read(folder / "bins.yaml")
    found = [scored for _, scored in read_distillkit(folder / "bins.parquet", options)]
    held = [s.token_ids.astype("<u4").tobytes() + bytes([0, *[1] * (len(s.token_ids) - 2)]) for s in found[::-1]]
    names = tuple(f"t{number}" for number in range(options.d))
    expected = Expected("made", "0" * 64, "made tokens", names, ["x", "y"], ["train", "train"], held.__getitem__)
    config = ImportConfig(
        source=str(folder / "bins.parquet"),
        format="distillkit",
        compression_config=folder / "bins.yaml",
        out=tmp_path / "cache",
    )
    report = build(config, None, Known(expected))
    cache = open_cache(tmp_path / "cache")
    assert cache.ids("train") == ["x", "y"] and "fit of the compressed values" in report.unknown
    assert cache.lengths("train").tolist() == [len(s.token_ids) - 2 for s in found[::-1]]
    assert cache.manifest.lineage[-1]["source"]["compression"]["k"] == options.k
    _ids, p, _ = labels(cache, "train")
    wanted = np.concatenate([np.exp(s.logprobs.reshape(-1, options.k)[1:]) for s in found[::-1]])
    order = np.argsort(np.concatenate([s.ids.reshape(-1, options.k)[1:] for s in found[::-1]]), axis=1)
    scale = np.maximum(wanted.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(p, np.take_along_axis(wanted / scale, order, axis=1), rtol=1e-5, atol=1e-9)
    wrong = Expected("made", "0" * 64, "made tokens", names[:-1], ["x", "y"], ["train", "train"], held.__getitem__)
    with pytest.raises(ConfigError, match="the source has"):
        build(config, None, Known(wrong))


def test_every_command_takes_such_a_cache(served: Served, tmp_path: Path) -> None:
    def softlabels_cache(*arguments: object) -> str:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    out, data = tmp_path / "cache", served.data.name
    said = softlabels_cache("import", served.lines, "--data", data, "--made-at", 1, "--k", 8, "--out", out)
    assert f"{len(served.data)} entries" in said and "unknown: teacher, weights, residual" in said
    assert "top-logprobs" in softlabels_cache("inspect", out)
    assert f"{len(served.data)} entries: sound" in softlabels_cache("verify", out)
    softlabels_cache("card", out)
    softlabels_cache("diff", out, served.root / "dump")
    softlabels_cache("transcode", out, "--store", "parquet", "--out", tmp_path / "other")
