"""The dump: the teacher runs once per entry, resumes, refuses what does not fit, writes the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import dump
from pipeline.dump import DumpConfig, job, parts
from pipeline.encodings import TopK
from pipeline.errors import BusyError, ConfigError, DataError, EncodingError, ModelError
from pipeline.models import build_model, save_weights
from pipeline.store import open_cache
from pipeline.verification import VerifyConfig, verify_with_teacher
from pipeline.workspace import Workspace

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    splits = np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 11)
    np.savez(
        tmp_path / "data.npz",
        x=random.normal(size=(61, 1, 8, 8)).astype(np.float32),
        y=random.integers(0, 3, 61),
        split=splits,
        classes=np.array(CLASSES),
    )
    return tmp_path / "data.npz"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(tmp_path / "teacher.safetensors", build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8)), {})
    return tmp_path / "teacher.safetensors"


@pytest.fixture
def options(data: Path, weights: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": f"arrays:{data}",
        "teacher": "mlp-8",
        "weights": weights,
        "out": tmp_path / "cache",
        "views": 2,
        "transform": "affine:degrees=20",
        "part_size": 16,
        "batch_size": 7,
        "device": "cpu",
    }


def tree(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_entry_holds_what_the_teacher_says(options: dict[str, Any]):
    report = dump.run(DumpConfig(**options))
    cache = open_cache(options["out"])
    assert report.entries == 40 * 3 + 10 + 11
    assert [cache.views(s) for s in ("train", "validation", "test")] == [(0, 1, 2), (0,), (0,)]
    found = verify_with_teacher(
        VerifyConfig(cache=str(options["out"]), teacher="mlp-8", weights=options["weights"], data=options["data"])
    )
    assert found.ok and found.entries == report.entries
    assert found.largest < 1e-5


def test_a_second_run_finds_it_finished(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    dump.run(DumpConfig(**options))
    before = tree(options["out"])
    monkeypatch.setattr(parts, "ask", None)
    report = dump.run(DumpConfig(**options))
    assert report.resumed == report.parts
    assert report.teacher_seconds == 0
    assert tree(options["out"]) == before


def test_workers_do_not_change_a_byte(options: dict[str, Any], tmp_path: Path):
    dump.run(DumpConfig(**options))
    dump.run(DumpConfig(**{**options, "out": tmp_path / "again", "workers": 2}))
    assert tree(tmp_path / "again") == tree(options["out"])


@pytest.mark.parametrize("store", ["zarr", "parquet"])
def test_a_dump_that_fails_resumes_to_the_same_bytes(options: dict[str, Any], store: str, tmp_path: Path, monkeypatch):
    options = {**options, "store": store, "features": ("hint=hidden",)}
    dump.run(DumpConfig(**{**options, "out": tmp_path / "whole"}))
    original, calls = parts.ask, []

    def failing(what: Any, inputs: torch.Tensor, *rest: Any) -> Any:
        calls.append(len(inputs))
        if len(calls) == 9:
            raise MemoryError("the machine gave up")
        return original(what, inputs, *rest)

    monkeypatch.setattr(parts, "ask", failing)
    with pytest.raises(MemoryError):
        dump.run(DumpConfig(**options))
    assert not options["out"].exists()
    first = sum(calls[:8])
    report = dump.run(DumpConfig(**options))
    assert 0 < report.resumed < report.parts
    assert sum(calls[9:]) < report.entries
    assert sum(calls[9:]) + first >= report.entries
    assert tree(options["out"]) == tree(tmp_path / "whole")


SLOW_TEACHER = """
import time
from pipeline.models import build_model
def teacher(classes, input_shape):
    model = build_model("mlp-8", {}, classes=classes, input_shape=input_shape)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    return model
"""


def test_a_killed_process_resumes_to_the_same_bytes(options: dict[str, Any], tmp_path: Path):
    (tmp_path / "slow.py").write_text(SLOW_TEACHER)
    options = {**options, "teacher": "slow:teacher"}
    command = [
        sys.executable,
        "-c",
        "import sys, pathlib, torch; sys.path.append('.'); torch.set_num_threads(1)\n"
        "from pipeline import dump\n"
        f"options = { ({k: str(v) if isinstance(v, Path) else v for k, v in options.items()})!r}\n"
        "options['out'] = pathlib.Path(sys.argv[1])\n"
        "print(dump.run(dump.DumpConfig(**options)).resumed, flush=True)",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}

    def start(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, str(out)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    killed = start(options["out"])
    journal = f".{options['out'].name}.softlabels-*/journal/*"
    deadline = time.monotonic() + 60
    # Files half written do not count: the part that they speak of is done again.
    while sum(path.suffix != ".partial" for path in tmp_path.glob(journal)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not options["out"].exists()
    resumed, whole = start(options["out"]), start(tmp_path / "whole")
    assert int(resumed.communicate(timeout=60)[0]) >= 2
    assert int(whole.communicate(timeout=60)[0]) == 0
    assert tree(options["out"]) == tree(tmp_path / "whole")


def test_a_crash_between_manifest_and_rename_loses_nothing(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    def crash(_: Workspace) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Workspace, "commit", crash)
        dump.run(DumpConfig(**options))
    monkeypatch.setattr(parts, "ask", None)
    assert dump.run(DumpConfig(**options)).teacher_seconds == 0
    assert open_cache(options["out"]).examples("train") == 40


def test_another_identity_is_refused_and_overwritten_on_request(options: dict[str, Any]):
    dump.run(DumpConfig(**options))
    before = tree(options["out"])
    with pytest.raises(ConfigError, match=r"other views\).*--overwrite"):
        dump.run(DumpConfig(**{**options, "seed": 1}))
    assert tree(options["out"]) == before
    dump.run(DumpConfig(**{**options, "seed": 1, "overwrite": True}))
    assert open_cache(options["out"]).identity["views"]["seed"] == 1


def test_a_folder_that_is_no_cache_is_left_alone(options: dict[str, Any]):
    options["out"].mkdir()
    (options["out"] / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not a finished cache"):
        dump.run(DumpConfig(**options))
    with pytest.raises(ConfigError, match=r"holds thesis\.tex"):
        dump.run(DumpConfig(**{**options, "overwrite": True}))
    assert (options["out"] / "thesis.tex").exists()


def test_a_file_in_the_place_of_the_cache_is_named(options: dict[str, Any]):
    options["out"].touch()
    with pytest.raises(ConfigError, match="is a file"):
        dump.run(DumpConfig(**options))


@pytest.mark.parametrize(("name", "value"), [("k", 3), ("temperature", (2.0,))])
def test_options_of_topk_are_refused_where_they_would_do_nothing(options: dict[str, Any], name: str, value: Any):
    with pytest.raises(ConfigError, match=f"--{name} is of --encoding topk"):
        DumpConfig(**{**options, name: value})
    assert DumpConfig(**{**options, name: value, "encoding": "topk"})


def test_a_second_dump_into_one_output_is_refused(options: dict[str, Any]):
    with Workspace(options["out"], "a" * 64), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        dump.run(DumpConfig(**options))


class Rowwise(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def run_with(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], model: nn.Module, **changes: Any) -> None:
    monkeypatch.setattr(job, "load_model", lambda *_, **__: model)
    dump.run(DumpConfig(**{**options, "teacher": "own:model", "weights": None, **changes}))


def test_logits_that_are_not_finite_name_the_entry(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    def function(x: torch.Tensor) -> torch.Tensor:
        logits = x.flatten(1)[:, :3].clone()
        logits[logits[:, 0] > 1.5] = float("nan")
        return logits

    with pytest.raises(EncodingError, match=r"example .*, view \d.*"):
        run_with(monkeypatch, options, Rowwise(function))
    assert not options["out"].exists()


def test_a_teacher_left_in_training_mode_is_evaluated(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    run_with(monkeypatch, options, model, views=0, transform=None)
    cache = open_cache(options["out"])
    x = torch.from_numpy(np.load(options["data"].removeprefix("arrays:"))["x"][:40])
    stored = cache.decode(cache.read_rows("train", 0, np.arange(40))).logits
    assert stored == pytest.approx(
        nn.functional.linear(x.flatten(1), model[2].weight, model[2].bias).detach().numpy(), abs=1e-5
    )


def test_a_wrong_number_of_classes_is_named(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match="3"):
        run_with(monkeypatch, options, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_a_wrong_input_shape_is_named(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match=r"1, 8, 8"):
        run_with(monkeypatch, options, nn.Sequential(nn.Flatten(), nn.Linear(100, 3)))


def test_a_sigmoid_teacher_is_refused_by_name(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match=r"(?i)multi-label|sigmoid"):
        run_with(monkeypatch, options, nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Sigmoid()))


def test_class_names_in_another_order_are_refused(options: dict[str, Any], tmp_path: Path):
    model = build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8))
    save_weights(tmp_path / "other.safetensors", model, {"class_names": ["bee", "ant", "cat"]})
    with pytest.raises(ModelError, match="another order"):
        dump.run(DumpConfig(**{**options, "weights": tmp_path / "other.safetensors"}))


def test_a_split_that_is_empty_is_an_error(options: dict[str, Any], tmp_path: Path):
    np.savez(
        tmp_path / "train.npz", x=np.zeros((4, 1, 8, 8), np.float32), y=np.arange(4) % 3, split=np.array(["train"] * 4)
    )
    with pytest.raises(DataError, match="no examples in --splits test"):
        dump.run(DumpConfig(**{**options, "data": f"arrays:{tmp_path / 'train.npz'}", "splits": ("test",)}))


def test_all_problems_come_together():
    with pytest.raises(ConfigError) as caught:
        DumpConfig(out=Path("https://host/x"), views=-1, batch_size=-1, features=("a b=c",), encoding="dens")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 7
    assert "random weights" in str(caught.value)
    assert "--features" in str(caught.value)


def test_features_are_stored_beside_the_logits(options: dict[str, Any]):
    dump.run(DumpConfig(**{**options, "features": ("hint=hidden",), "encoding": "topk", "k": 2, "dtype": "float16"}))
    cache = open_cache(options["out"])
    assert cache.feature_names == ("hint",)
    hint = cache.read_feature_rows("hint", "test", 0, np.arange(11))
    assert hint.dtype == np.float16 and hint.shape[0] == 11 and np.isfinite(hint).all()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_kept_logits_of_few_bits(options: dict[str, Any], dtype: str):
    chosen = {**options, "encoding": "topk", "k": 1, "dtype": dtype}
    dump.run(DumpConfig(**chosen))
    cache = open_cache(options["out"])
    assert cache.encoding == TopK(1, dtype, (1.0, 4.0)) and cache.manifest.format == 3
    # All that there is to be seen of one class is its mass, which half precision has.
    assert 0 < cache.manifest.bound < 5e-4
    found = verify_with_teacher(
        VerifyConfig(cache=str(options["out"]), teacher="mlp-8", weights=options["weights"], data=options["data"])
    )
    assert found.ok and 0 < found.largest <= cache.manifest.bound


def test_four_bits_are_of_kept_logits(options: dict[str, Any]):
    with pytest.raises(ConfigError, match="--dtype int4 is of --encoding topk"):
        DumpConfig(**{**options, "dtype": "int4"})


def test_a_compiled_teacher_fills_the_same_cache(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    dump.run(DumpConfig(**options))
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    again = {**options, "out": options["out"].with_name("again")}
    dump.run(DumpConfig(**again, compile=True))
    assert len(compiled) == 1 and tree(options["out"]) == tree(again["out"])
    with pytest.raises(ConfigError, match=r"--features .* --compile"):
        DumpConfig(**again, compile=True, features=("hint=0",))


def test_an_unknown_feature_lists_the_modules(options: dict[str, Any]):
    with pytest.raises(ConfigError, match="hidden"):
        dump.run(DumpConfig(**{**options, "features": ("hint=layer9",)}))


def test_a_kill_while_the_journal_goes_leaves_none_of_it(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dump.run(DumpConfig(**{**options, "out": tmp_path / "whole"}))

    def killed(journal: Path, **_: Any) -> None:
        next(journal.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.store.writer.shutil.rmtree", killed)
        dump.run(DumpConfig(**options))
    (scratch,) = tmp_path.glob(".cache.softlabels-*/journal")
    assert any(scratch.iterdir())
    assert dump.run(DumpConfig(**options)).teacher_seconds == 0
    assert tree(options["out"]) == tree(tmp_path / "whole")


def test_an_entry_that_cannot_be_kept_stops_the_teacher_soon(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        time.sleep(0.02)  # longer than the writer takes to notice
        return torch.full((len(x), 3), float("nan")) if len(calls) == 4 else x.flatten(1)[:, :3]

    with pytest.raises(EncodingError, match="example"):
        run_with(monkeypatch, options, Rowwise(function), batch_size=1)
    assert len(calls) < 100, "of 141 entries"


def test_parts_do_not_pile_up_before_a_slow_disk(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    builder = parts._PartBuilder
    begin, write, held, most = builder.__init__, builder.write, [0], [0]

    def begins(self: Any, *arguments: Any) -> None:
        held[0] += 1
        most[0] = max(most[0], held[0])
        begin(self, *arguments)

    def slow(self: Any, *arguments: Any) -> None:
        time.sleep(0.02)
        write(self, *arguments)
        held[0] -= 1

    monkeypatch.setattr(builder, "__init__", begins)
    monkeypatch.setattr(builder, "write", slow)
    report = dump.run(DumpConfig(**options))
    assert report.parts > 4 and most[0] == 2, "one that is written, and one in hand"


def test_splits_are_a_set(options: dict[str, Any]):
    dump.run(DumpConfig(**{**options, "splits": ("test", "train")}))
    assert dump.run(DumpConfig(**{**options, "splits": ("train", "test", "train")})).resumed > 0


def test_no_example_is_read_twice_for_its_digest(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    monkeypatch.setattr("pipeline.datasets.Arrays.read", lambda self, row: read.append(row) or bytes([row]))
    dump.run(DumpConfig(**options))
    assert sorted(read) == list(range(61))
    assert open_cache(options["out"]).input_digests("test")[0] == hashlib.sha256(bytes([50])).hexdigest()


def test_a_report_that_is_gone_is_written_again(options: dict[str, Any]):
    dump.run(DumpConfig(**options))
    beside = options["out"].with_name("cache.report.json")
    kept = beside.read_bytes()
    dump.run(DumpConfig(**options))
    assert beside.read_bytes() == kept
    beside.unlink()
    dump.run(DumpConfig(**options))
    assert beside.is_file()


def test_arguments_that_cannot_be_parsed_are_one_problem_of_several():
    with pytest.raises(ConfigError) as caught:
        DumpConfig(out=Path("x"), teacher_args=("width",), encoding="topk", k=0, workers=-1)
    assert [p.partition(" ")[0] for p in caught.value.problems] == ["--teacher-args", "--workers", "--k"]
