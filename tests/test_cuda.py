"""What must also hold on a GPU. Skipped where there is none; run it where there is one before a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import compression, dump, evaluation, open_cache, teacher, training
from pipeline.compression import CompressConfig
from pipeline.devices import resolve_device
from pipeline.dump import DumpConfig, parts
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.encodings.encode_torch import encode
from pipeline.evaluation import EvaluateConfig
from pipeline.losses import FEATURE_LOSSES, LOSSES
from pipeline.models import build_model, save_weights
from pipeline.teacher import FitTeacherConfig
from pipeline.training import TrainConfig, fit, prepare, sweep
from pipeline.training.grid import SweepConfig
from pipeline.training.stage import initial_student
from pipeline.verification import VerifyConfig, verify_with_teacher
from tests.training.stopping import stopped

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_in(tmp_path_factory.mktemp("teacher"), 0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A cache that the GPU made, with a feature, and one random view."""
    return cache_on(GPU, tmp_path_factory.mktemp("shared") / "cache", weights, features=("hint=stage2",))


def teacher_in(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path = folder / f"teacher-{seed}.safetensors"
    save_weights(path, build_model("cnn-8", {}, classes=10, input_shape=(1, 8, 8)), {})
    return path


def cache_on(device: str, out: Path, weights: Path, **options: object) -> Path:
    base = {"teacher": "cnn-8", "weights": weights, "views": 1, "transform": "affine:degrees=10", "part_size": 256}
    dump.run(DumpConfig(**{**base, "out": out, "device": device, **options}))  # type: ignore[arg-type]
    return out


def same_files(one: Path, two: Path) -> None:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def losses(out: Path, device: str, **options: object) -> list[float]:
    """The loss of each epoch of a short run of mlp-8 on ``device``."""
    base = {"student": "mlp-8", "epochs": 2, "train_views": "all"}
    training.run(TrainConfig(**{**base, "out": out / device, "device": device, **options}))  # type: ignore[arg-type]
    return [epoch["loss"] for epoch in json.loads((out / device / "seed-0" / "history.json").read_text())]


def test_a_dump_on_the_gpu_says_what_the_cpu_says(tmp_path: Path, weights: Path) -> None:
    cache = cache_on(GPU, tmp_path / "cuda", weights)
    found = verify_with_teacher(VerifyConfig(cache=str(cache), teacher="cnn-8", weights=weights, device="cpu"))
    assert found.ok, found.summary


def test_the_gpu_writes_the_same_bytes_twice(tmp_path: Path, weights: Path, cache: Path) -> None:
    same_files(cache, cache_on(GPU, tmp_path / "two", weights, features=("hint=stage2",)))


def test_workers_beside_a_gpu_change_no_byte(tmp_path: Path, weights: Path, cache: Path) -> None:
    same_files(cache, cache_on(GPU, tmp_path / "two", weights, features=("hint=stage2",), workers=2))


def test_a_dump_that_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, calls = parts.awaited, []

    def failing(*given: Any) -> Any:
        calls.append(None)
        if len(calls) == 5:
            raise MemoryError("the machine gave up")
        return ask(*given)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(parts, "awaited", failing)
        cache_on(GPU, tmp_path / "two", weights, features=("hint=stage2",))
    assert not (tmp_path / "two").exists()
    same_files(cache, cache_on(GPU, tmp_path / "two", weights, features=("hint=stage2",)))
    report = json.loads((tmp_path / "two.report.json").read_text())
    assert 0 < report["resumed"] < report["parts"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(tmp_path: Path, weights: Path, precision: str) -> None:
    exact, half = (
        open_cache(cache_on(GPU, tmp_path / name, weights, precision=name, features=("hint=stage2",)))
        for name in ("float32", precision)
    )
    rows = np.arange(100)
    a, b = (cache.decode(cache.read_rows("train", 0, rows)).logits for cache in (exact, half))
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()
    a, b = (cache.read_feature_rows("hint", "train", 0, rows).astype(np.float32) for cache in (exact, half))
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize(
    "encoding", [*map(Dense, Dense.choices), *(TopK(5, dtype, (1.0, 4.0)) for dtype in TopK.choices)], ids=repr
)
def test_encoding_on_the_gpu_is_that_of_numpy(encoding: Encoding) -> None:
    """Dense arrays bit for bit; of top-k the classes and logits, with masses that may differ in their last bits."""
    logits = 5 * np.random.default_rng(0).standard_normal((300, 40), dtype=np.float32)
    logits[:50] = logits[:50].round()  # ties
    logits[50] = 0
    expected, found = encoding.encode(logits), encode(encoding, torch.from_numpy(logits).to(GPU))
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        if name in ("log_normaliser", "log_residual"):
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize("encoding", ["dense", "topk"])
def test_training_on_the_gpu_follows_the_cpu(tmp_path: Path, weights: Path, resident: str, encoding: str) -> None:
    options: dict[str, object] = {"encoding": "topk", "k": 4} if encoding == "topk" else {}
    cache = str(cache_on(GPU, tmp_path / "cache", weights, **options))
    cpu, gpu = (losses(tmp_path, device, cache=cache, resident=resident, epochs=3) for device in ("cpu", GPU))
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
def test_inputs_from_anywhere_train_the_same(tmp_path: Path, cache: Path, resident: str) -> None:
    workers = 2 if resident == "none" else 0
    given = {"cache": str(cache), "student": "mlp-8"}
    found = losses(tmp_path / "a", GPU, resident_inputs=resident, workers=workers, **given)
    assert found == pytest.approx(losses(tmp_path / "b", "cpu", **given), rel=1e-3)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "kl"])
def test_each_loss_on_the_gpu_follows_the_cpu(tmp_path: Path, cache: Path, loss: str) -> None:
    cpu, gpu = (losses(tmp_path, device, cache=str(cache), loss=loss) for device in ("cpu", GPU))
    assert gpu == pytest.approx(cpu, rel=2e-3)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_hints_on_the_gpu_follow_the_cpu(tmp_path: Path, cache: Path, loss: str) -> None:
    options = {"cache": str(cache), "student": "cnn-4", "hints": ("hint=stage2",), "hint_loss": loss, "epochs": 1}
    cpu, gpu = (losses(tmp_path, device, **options) for device in ("cpu", GPU))
    assert gpu == pytest.approx(cpu, rel=2e-2)


def test_bfloat16_stays_near_and_keeps_float32_weights(tmp_path: Path, cache: Path) -> None:
    given = {"cache": str(cache), "student": "cnn-4"}
    exact = losses(tmp_path / "a", GPU, **given)
    half = losses(tmp_path / "b", GPU, precision="bfloat16", **given)
    assert half != exact and half == pytest.approx(exact, rel=5e-2)
    config = TrainConfig(**given, precision="bfloat16", epochs=1, device=GPU, out=tmp_path / "c")  # type: ignore[arg-type]
    prepared = prepare(config)
    model = initial_student(config, prepared.dataset, 0)
    fit(model, prepared.task, config, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {torch.device(GPU).type}


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_student_learns_the_same(tmp_path: Path, cache: Path) -> None:
    plain, compiled = (
        losses(tmp_path / str(compiled), GPU, cache=str(cache), compile=compiled, epochs=1)
        for compiled in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("student", ["mlp-8", "cnn-4"])
@pytest.mark.parametrize("exchange", ["mutual", "ensemble"])
def test_peers_are_stacked_and_follow_the_cpu(tmp_path: Path, cache: Path, student: str, exchange: str) -> None:
    options = {"cache": str(cache), "student": student, "peers": 3, "exchange": exchange}
    cpu, gpu = (losses(tmp_path, device, **options) for device in ("cpu", GPU))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-3 if student == "mlp-8" else 2e-2)
    report = json.loads((tmp_path / f"{GPU}.report.json").read_text())
    assert report["environment"]["fits"]["0"]["stacked"], "on an accelerator, peers that are alike are one batch"


@pytest.mark.parametrize("mix", ["probs", "logits", "confident", "correct", "losses", "heads"])
def test_mixtures_on_the_gpu_follow_the_cpu(tmp_path: Path, cache: Path, mix: str) -> None:
    other = cache_on(GPU, tmp_path / "other", teacher_in(tmp_path, 1), part_size=300)
    shares = (1, 1) if mix == "confident" else (0.7, 0.3)
    labels = tuple(f"{path}={share}" for path, share in zip((cache, other), shares, strict=True))
    options = {"labels": labels, "mix": mix}
    cpu, gpu = (losses(tmp_path, device, **options) for device in ("cpu", GPU))
    assert gpu == pytest.approx(cpu, rel=1e-3)


def test_mixed_views_on_the_gpu_follow_the_cpu(tmp_path: Path, weights: Path) -> None:
    cache = str(cache_on(GPU, tmp_path / "cache", weights, transform="mixup"))
    cpu, gpu = (losses(tmp_path, device, cache=cache, alpha=0.5) for device in ("cpu", GPU))
    assert gpu == pytest.approx(cpu, rel=1e-3)


def test_the_cached_run_is_that_with_the_teacher_itself(tmp_path: Path, weights: Path, cache: Path) -> None:
    cached = losses(tmp_path / "cached", GPU, cache=str(cache), block=256)
    views = {"views": 1, "transform": "affine:degrees=10"}
    live = losses(tmp_path / "live", GPU, teacher="cnn-8", weights=weights, block=256, **views)
    assert cached == pytest.approx(live, rel=1e-3)


def test_a_run_that_stopped_goes_on_as_it_would_have(tmp_path: Path, cache: Path) -> None:
    """With dropout, whose state is the GPU's. Convolutions may sum their gradients in any order: not bit for bit."""
    config = TrainConfig(
        cache=str(cache), student="cnn-4", student_args=("dropout=0.3",), epochs=2, device=GPU, out=tmp_path / "run"
    )
    config = TrainConfig(**{**vars(config), "checkpoint_every": 1e-9})

    def student() -> Any:
        return initial_student(config, prepare(config).dataset, 0)

    state = tmp_path / "state.safetensors"
    whole = fit(student(), prepare(config).task, config, seed=0)
    stopped(student(), prepare(config).task, config, state, 7)
    assert state.exists()
    found = fit(student(), prepare(config).task, config, seed=0, state=state)
    assert [e["loss"] for e in found.history] == pytest.approx([e["loss"] for e in whole.history], rel=1e-4)
    other = fit(student(), prepare(config).task, config, seed=1)
    assert [e["loss"] for e in other.history] != pytest.approx([e["loss"] for e in whole.history], rel=1e-4)


def test_evaluating_on_the_gpu_gives_the_figures_of_the_cpu(tmp_path: Path, cache: Path) -> None:
    losses(tmp_path, GPU, cache=str(cache), student="cnn-4")
    found = {}
    for device in ("cpu", GPU):
        out = tmp_path / f"evaluated-{device}"
        evaluation.run(EvaluateConfig(run=tmp_path / GPU, out=out, device=device))
        found[device] = json.loads((out / "metrics.json").read_text())
    assert found["cpu"].keys() == found[GPU].keys()
    for name, value in found["cpu"].items():
        if isinstance(value, (int, float)):
            assert found[GPU][name] == pytest.approx(value, rel=0.05, abs=0.01), name


def test_several_models_are_evaluated_on_the_gpu(tmp_path: Path, cache: Path) -> None:
    losses(tmp_path, GPU, cache=str(cache), student="cnn-4")
    models = (f"trained={tmp_path / GPU}", f"again={tmp_path / GPU}")
    evaluation.run(EvaluateConfig(models=models, out=tmp_path / "table", device=GPU, latency_seconds=0.001))
    rows = json.loads((tmp_path / "table" / "details.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["trained", "again"]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]


def test_a_teacher_learns_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    found = []
    for device in ("cpu", GPU):
        out = tmp_path / device
        teacher.run(FitTeacherConfig(teacher="cnn-4", epochs=2, views=1, out=out, device=device))
        found.append([epoch["loss"] for epoch in json.loads((out / "history.json").read_text())])
    assert found[1] == pytest.approx(found[0], rel=2e-2)


def test_a_sweep_on_the_gpu_is_stacked_and_follows_the_cpu(tmp_path: Path, cache: Path) -> None:
    found = []
    for device in ("cpu", GPU):
        out = tmp_path / device
        options = {"cache": str(cache), "student": "cnn-4", "epochs": 1, "device": device, "out": out}
        report = sweep.run(SweepConfig(**options, grid=("alpha=0.5,0.9", "temperature=1,4")))  # type: ignore[arg-type]
        assert all(fits["0"]["stacked"] for fits in report.environment["cohorts"].values())
        histories = sorted(out.glob("*/seed-0/history.json"))
        found.append([json.loads(path.read_text())[0]["loss"] for path in histories])
    assert len(found[0]) == 4 and found[1] == pytest.approx(found[0], rel=2e-2)


def test_float32_is_float32_in_convolutions() -> None:
    """TF32 keeps 10 bits of each factor: an error of 1e-4 and more here, where float32 makes one of 1e-7."""
    device = resolve_device(GPU)
    torch.manual_seed(0)
    convolution, x = torch.nn.Conv2d(64, 64, 3), torch.rand(8, 64, 16, 16)
    with torch.no_grad():
        exact = convolution.double()(x.double())
        found = convolution.float().to(device)(x.to(device)).cpu().double()
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5


def test_compressing_fine_tunes_on_the_gpu(tmp_path: Path, cache: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package)
    losses(tmp_path, GPU, cache=str(cache), student="cnn-4")
    out = tmp_path / "compressed"
    options = {"epochs": 1, "latency_seconds": 0.001, "calibration": 64}
    report = compression.run(CompressConfig(runs=(tmp_path / GPU,), out=out, device=GPU, **options))
    rows = {row["name"]: row for row in report.table["rows"]}
    assert {"baseline", "pruned", "pruned-int8", "finetuned"} <= set(rows)
    assert [row["skipped"] for row in rows.values()] == [None] * len(rows)
    assert rows["pruned"]["parameters"] < rows["baseline"]["parameters"]
