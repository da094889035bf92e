"""What must also hold of language models on a GPU. Skipped where there is none; run it there before a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import compression, dump, evaluation, open_cache, training
from pipeline.artefacts.opening import open_artefact
from pipeline.compression import CompressConfig
from pipeline.dump import DumpConfig
from pipeline.encodings import Encoding, Sampled, TopK, position_keys
from pipeline.encodings.blocks_torch import usable_kernel
from pipeline.encodings.encode_torch import begin, encode
from pipeline.errors import EncodingError
from pipeline.evaluation import EvaluateConfig
from pipeline.losses import fused_loss
from pipeline.models import build_model, save_weights
from pipeline.softlabels import Sampled as SampledLabels
from pipeline.softlabels import SoftLabels
from pipeline.softlabels import TopK as TopKLabels
from pipeline.store import Cache
from pipeline.training import TrainConfig
from tests.losses.references import draws64, partition64, softmax64, topk_of
from tests.sequences import VOCABULARY, uneven
from tests.test_cuda import same_files

GPU = "cuda"
DATA, SHAPE = "tests.sequences:uneven", (12,)
TEACHER: dict[str, Any] = {"data": DATA, "teacher": "gpt-16", "teacher_args": ("layers=1",), "part_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "sampled": {"encoding": "sampled"},
    "topk": {"encoding": "topk", "k": 4, "temperature": (1.0,)},
    "topk-int8": {"encoding": "topk", "k": 4, "dtype": "int8", "temperature": (1.0,)},
    "dense": {"encoding": "dense"},
}
BROKEN = 5
"""The row of which ``broken`` says nothing sensible."""

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # the compiler's own
]


def sure(classes: int) -> nn.Module:
    """A teacher that is sure of something."""
    torch.manual_seed(1)
    model = build_model("gpt-16", {"layers": 1}, classes=classes, input_shape=SHAPE, discrete=True)
    with torch.no_grad():
        model.body.norm.weight.mul_(3.0)  # type: ignore[union-attr, operator]
    return model


def halved(classes: int) -> nn.Module:
    """The same with its weights, and so its logits, in bfloat16."""
    return sure(classes).bfloat16()


class Broken(nn.Module):
    """A teacher that gives ``value`` for one token after one sequence."""

    def __init__(self, classes: int, value: float) -> None:
        super().__init__()
        self.model, self.value, self.sequence = sure(classes), value, uneven().load(BROKEN)

    def forward(self, ids_BT: Tensor) -> Tensor:
        logits: Tensor = self.model(ids_BT)
        length = min(ids_BT.shape[1], len(self.sequence))
        hit = (ids_BT[:, :length] == self.sequence[:length].to(ids_BT)).all(dim=1)
        logits[hit, :, 3] = self.value
        return logits


def broken(classes: int, negative: bool) -> nn.Module:
    return Broken(classes, float("-inf" if negative else "nan"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sequences") / "teacher.safetensors"
    save_weights(path, sure(VOCABULARY), {})
    return path


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, Path]:
    """A cache of each kind, that the GPU made."""
    folder = tmp_path_factory.mktemp("caches")
    return {kind: cache_on(GPU, folder / kind, weights=weights, **options) for kind, options in KINDS.items()}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, caches: dict[str, Path]) -> Path:
    """A run on the GPU, from sampled labels."""
    out = tmp_path_factory.mktemp("student")
    losses(out, GPU, cache=str(caches["sampled"]), epochs=6)
    return out / GPU


def cache_on(device: str, out: Path, **options: Any) -> Path:
    dump.run(DumpConfig(**{**TEACHER, "out": out, "device": device, **options}))
    return out


def parts_of(cache: Cache) -> list[Any]:
    """The labels of each part, in order."""
    return [cache.decode(cache.read_part(part.number)) for part in cache.parts]


def losses(out: Path, device: str, **options: Any) -> list[float]:
    """The loss of each epoch of a short run of gpt-16 on ``device``, batches of uneven sequences."""
    base = {"data": DATA, "student": "gpt-16", "student_args": ("layers=1",), "epochs": 3, "batch_size": 8, "lr": 0.01}
    mixed = {"alpha": 0.5, "beta": 0.5, "temperature": 1.0}
    training.run(TrainConfig(**{**base, **mixed, "out": out / device, "device": device, **options}))
    return [epoch["loss"] for epoch in json.loads((out / device / "seed-0" / "history.json").read_text())]


def pairs(labels: SampledLabels) -> set[tuple[int, int]]:
    return set(zip(np.asarray(labels.rows).tolist(), np.asarray(labels.ids).tolist(), strict=True))


def probabilities(labels: Any) -> np.ndarray:
    """Of the kept classes of top-k labels and, last, of the others, (N, K + 1)."""
    kept, rest = labels.at(1.0)
    return np.exp(np.concatenate([kept, rest[:, None]], axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dump_on_the_gpu_keeps_what_the_cpu_keeps(tmp_path: Path, weights: Path, caches: dict, kind: str) -> None:
    """But for draws on the border of two classes, and classes as likely as the last that is kept."""
    cpu = open_cache(cache_on("cpu", tmp_path / "cpu", weights=weights, **KINDS[kind]))
    expected, found = parts_of(cpu), parts_of(open_cache(caches[kind]))
    assert len(expected) == len(found) > 2
    for one, other in zip(expected, found, strict=True):
        if kind == "sampled":
            assert len(pairs(one) ^ pairs(other)) <= 4
        elif kind == "dense":
            np.testing.assert_allclose(other.logits, one.logits, rtol=1e-4, atol=1e-4)
        else:
            same = (one.ids == other.ids).all(axis=1)
            assert (~same).sum() <= 1
            # int8 logits may round to the next step, a 127th of some nats.
            np.testing.assert_allclose(
                probabilities(other)[same], probabilities(one)[same], atol=0.03 if kind == "topk-int8" else 1e-4
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_writes_the_same_bytes_twice(tmp_path: Path, weights: Path, caches: dict, kind: str) -> None:
    same_files(caches[kind], cache_on(GPU, tmp_path / "two", weights=weights, **KINDS[kind]))


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_a_teacher_in_bfloat16_says_nearly_the_same(
    tmp_path: Path, weights: Path, caches: dict[str, Path], how: str
) -> None:
    options = {"precision": "bfloat16", "weights": weights}
    if how == "weights":
        options = {"teacher": "tests.test_cuda_language:halved", "teacher_args": ()}
    exact, half = (
        parts_of(open_cache(caches["dense"])),
        parts_of(open_cache(cache_on(GPU, tmp_path / "half", **options))),
    )
    for one, other in zip(exact, half, strict=True):
        assert not np.array_equal(one.logits, other.logits)
        assert np.abs(one.logits - other.logits).max() < 0.1 * np.abs(one.logits).max()
    drawn = parts_of(open_cache(cache_on(GPU, tmp_path / "drawn", **options, **KINDS["sampled"])))
    for logits, soft in zip(exact, drawn, strict=True):
        wide = np.zeros(logits.logits.shape)
        np.add.at(wide, (soft.rows, soft.ids), soft.weights)
        # Systematic draws are within one of n p; bfloat16 moves p by some hundredths.
        assert np.abs(wide - softmax64(logits.logits)).max() < 1 / 50 + 0.06


def logits_of(rows: int, classes: int, dtype: str) -> Tensor:
    """(rows, classes) on the CPU: a few rows with ties, one all equal; in bfloat16 most values have equals."""
    logits = 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes))
    logits[:8] = logits[:8].round()
    logits[8] = 0.25
    return logits.to(getattr(torch, dtype))


def test_the_kernels_work_on_this_gpu() -> None:
    """Where they did not, encoding would go on without them, with a warning."""
    pytest.importorskip("triton")
    assert usable_kernel(torch.device("cuda")) is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [50_000, 50_001, 1_003])
@pytest.mark.parametrize("kept", TopK.choices)
def test_top_k_on_the_gpu_is_that_of_numpy(kept: str, classes: int, dtype: str) -> None:
    logits, encoding = logits_of(40, classes, dtype), TopK(50, kept, (1.0, 2.0))
    host = logits.float().numpy()
    first = np.sort(np.argsort(-host, axis=1, kind="stable")[:, :50], axis=1)
    arrays = encode(encoding, logits.to(GPU))
    expected = encoding.encode(host)
    assert {name: (a.dtype, a.shape) for name, a in arrays.items()} == {
        name: (a.dtype, a.shape) for name, a in expected.items()
    }
    one, other = encoding.decode(expected, classes), encoding.decode(arrays, classes)
    np.testing.assert_array_equal(other.ids, first)
    np.testing.assert_array_equal(one.ids, first)
    if kept in ("float32", "float16"):
        np.testing.assert_array_equal(arrays["logits"], expected["logits"])
        np.testing.assert_allclose(other.log_normaliser, one.log_normaliser, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.log_residual, one.log_residual, rtol=1e-5, atol=1e-6)
    else:
        allowed = 2 * encoding.bound(expected, classes)
        np.testing.assert_allclose(probabilities(other), probabilities(one), atol=allowed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [50_000, 50_001, 1_003])
@pytest.mark.parametrize(
    "encoding", [Sampled(), Sampled(20, proposal=0.6), Sampled(30, scheme="independent", temperature=2.0)], ids=repr
)
def test_draws_on_the_gpu_are_those_of_numpy(encoding: Sampled, classes: int, dtype: str) -> None:
    """But for those on the border of two classes, where exp and sums round otherwise."""
    logits, keys = logits_of(40, classes, dtype), position_keys(7, 40)
    one = encoding.decode(encoding.encode(logits.float().numpy(), keys), classes)
    other = encoding.decode(encode(encoding, logits.to(GPU), keys), classes)
    begun = begin(encoding, logits.to(GPU), keys, lambda: logits)
    assert begun.best is not None and begun.best.tolist() == logits.float().numpy().argmax(axis=1).tolist()
    apart = pairs(one) ^ pairs(other)
    assert len(apart) <= 4 + len(one.ids) // 1000
    if not apart:
        # Counts may differ where a border draw moved between two classes that both have others.
        assert (np.abs(other.weights - one.weights) > 1e-3 * one.weights.max()).sum() <= 4
    again = encode(encoding, logits.to(GPU), keys)
    for name, array in encode(encoding, logits.to(GPU), keys).items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("encoding", [Sampled(), TopK(50, "float16"), TopK(50, "int8")], ids=repr)
def test_what_is_not_finite_is_refused_with_its_row(encoding: Encoding, value: float, dtype: str) -> None:
    logits = logits_of(40, 50_001, dtype)
    logits[17, 50_000] = value
    with pytest.raises(EncodingError, match="17") as refused:
        encode(encoding, logits.to(GPU), position_keys(7, 40))
    assert refused.value.row == 17


@pytest.mark.parametrize("kind", ["sampled", "topk"])
@pytest.mark.parametrize("negative", ["true", "false"])
def test_a_dump_names_the_sequence_that_cannot_be_kept(tmp_path: Path, kind: str, negative: str) -> None:
    named = {"teacher": "tests.test_cuda_language:broken", "teacher_args": (f"negative={negative}",)}
    with pytest.raises(EncodingError, match=rf"made/{BROKEN:04d} \(row {BROKEN}\)"):
        cache_on(GPU, tmp_path / "cache", **named, **KINDS[kind])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["sampled", "topk"])
def test_training_on_the_gpu_follows_the_cpu(tmp_path: Path, caches: dict[str, Path], kind: str, fused: bool) -> None:
    given = {"cache": str(caches[kind]), "fused_loss": fused}
    cpu, gpu = (losses(tmp_path, device, **given) for device in ("cpu", GPU))
    assert gpu == pytest.approx(cpu, rel=1e-3)
    assert gpu[-1] < gpu[0]


@pytest.mark.parametrize("kind", ["sampled", "topk"])
def test_wherever_the_labels_are_kept(tmp_path: Path, caches: dict[str, Path], kind: str) -> None:
    given = {"cache": str(caches[kind]), "fused_loss": False}
    streamed, ram, there = (
        losses(tmp_path / resident, GPU, resident=resident, **given) for resident in ("none", "ram", "device")
    )
    assert ram == pytest.approx(streamed, rel=1e-4) and there == pytest.approx(streamed, rel=1e-4)


def test_the_cached_run_is_that_with_the_teacher_itself(tmp_path: Path, weights: Path, caches: dict[str, Path]) -> None:
    common = {"fused_loss": False, "temperature": 2.0}
    cached = losses(tmp_path / "cached", GPU, cache=str(caches["dense"]), resident="none", **common)
    named = {name: TEACHER[name] for name in ("teacher", "teacher_args")}
    live = losses(tmp_path / "live", GPU, **named, weights=weights, block=TEACHER["part_size"], **common)
    assert cached == pytest.approx(live, rel=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_a_student_in_bfloat16_stays_near(tmp_path: Path, caches: dict[str, Path], fused: bool) -> None:
    given = {"cache": str(caches["sampled"]), "fused_loss": fused}
    exact = losses(tmp_path / "exact", GPU, **given)
    half = losses(tmp_path / "half", GPU, precision="bfloat16", **given)
    assert half != exact and half == pytest.approx(exact, rel=3e-2)


POSITIONS, WIDTH, CLASSES = 53, 16, 1_003


def layer() -> list[Tensor]:
    """Hidden states, weight and bias, float64 leaves."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((POSITIONS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    return [(0.6 * torch.randn(s, generator=generator, dtype=torch.float64)).requires_grad_() for s in shapes]


def labels(kind: str) -> tuple[SoftLabels, Tensor]:
    """Soft labels in float64 with hard ones, -1 for none."""
    teacher = 3 * np.random.default_rng(5).normal(size=(POSITIONS, CLASSES))
    targets = torch.randint(-1, CLASSES, (POSITIONS,), generator=torch.Generator().manual_seed(9))
    if kind == "topk":
        return topk_of(teacher, 12, (1.0,), torch.float64), targets
    p = softmax64(teacher)
    return draws64(p, p, 50, 1.0, np.random.default_rng(1))[0], targets


def reference(parts: list[Tensor], soft: Any, targets: Tensor) -> Tensor:
    """Half the soft and half the hard loss, summed, of all logits at once in float64."""
    log_q = torch.log_softmax(parts[0] @ parts[1].t() + parts[2], dim=1)
    known = targets >= 0
    hard = -log_q[known, targets[known]].sum()
    if isinstance(soft, TopKLabels):
        logprobs, rest = soft.at(1.0)
        dropped = torch.ones(POSITIONS, CLASSES, dtype=torch.bool).scatter(1, soft.ids, False)
        outside = log_q.masked_fill(~dropped, -torch.inf).logsumexp(dim=1)
        kept = (logprobs.exp() * (logprobs - log_q.gather(1, soft.ids))).sum()
        return 0.5 * (kept + (rest.exp() * (rest - outside)).sum()) + 0.5 * hard
    assert isinstance(soft, SampledLabels)
    value = -(soft.weights * log_q[soft.rows, soft.ids.long()]).sum()
    return 0.5 * value + 0.5 * hard


def fused_on_gpu(parts: list[Tensor], kind: str, compiled: bool) -> tuple[Tensor, list[Tensor]]:
    """The fused loss in float32 on the GPU, and gradients of hidden states, weight and bias."""
    soft, targets = labels(kind)
    there = [part.detach().float().to(GPU).requires_grad_() for part in parts]
    moved = soft.map(lambda array: (array.float() if array.is_floating_point() else array).to(GPU))
    found = fused_loss(
        *there, targets_P=targets.to(GPU), soft=moved, alpha=0.5, beta=0.5, temperature=1.0, chunk=16,
        compile_chunks=compiled,
    )  # fmt: skip
    return found.total, list(torch.autograd.grad(found.total, there))


@pytest.mark.parametrize("kind", ["sampled", "topk"])
def test_the_fused_loss_is_that_of_all_logits_compiled_or_not(kind: str) -> None:
    parts = layer()
    expected = reference(parts, *labels(kind))
    wanted = torch.autograd.grad(expected, parts)
    whole = [fused_on_gpu(parts, kind, compiled) for compiled in (False, True)]
    for total, gradients in whole:
        assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        for one, other in zip(gradients, wanted, strict=True):
            assert one.dtype == torch.float32
            assert float((one.cpu() - other).norm()) <= 1e-5 * float(other.norm())
    torch.testing.assert_close(whole[0], whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["sampled", "topk"])
def test_the_fused_loss_under_bfloat16_stays_near(kind: str, compiled: bool) -> None:
    parts = layer()
    expected = reference(parts, *labels(kind))
    wanted = torch.autograd.grad(expected, parts)
    with torch.autocast(torch.device(GPU).type, dtype=torch.bfloat16):
        total, gradients = fused_on_gpu(parts, kind, compiled)
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-2)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one.cpu() - other).norm()) <= 3e-2 * float(other.norm())


def test_the_reference_counts_the_dropped_mass() -> None:
    """The comparison would notice: with the residual left out, or draws of another position, it says otherwise."""
    parts, (soft, targets) = layer(), labels("topk")
    assert isinstance(soft, TopKLabels)
    expected = float(reference(parts, soft, targets).detach())
    assert float(reference(parts, soft.bare(), targets).detach()) != pytest.approx(expected, rel=1e-3)
    teacher = 3 * np.random.default_rng(5).normal(size=(POSITIONS, CLASSES))
    kept = partition64(softmax64(teacher), soft.ids.numpy())
    np.testing.assert_allclose(probabilities(soft), kept, atol=1e-12)


def test_evaluating_on_the_gpu_gives_the_figures_of_the_cpu(tmp_path: Path, student: Path) -> None:
    found = {}
    for device in ("cpu", GPU):
        out = tmp_path / f"evaluated-{device}"
        evaluation.run(EvaluateConfig(data=DATA, allow=(DATA,), run=student, out=out, device=device, cost=False))
        found[device] = json.loads((out / "metrics.json").read_text())
    assert found["cpu"].keys() == found[GPU].keys() and found[GPU]["perplexity"] > 1
    for name, value in found["cpu"].items():
        if isinstance(value, (int, float)):
            assert found[GPU][name] == pytest.approx(value, rel=1e-2, abs=1e-2), name


def test_a_student_of_the_gpu_is_compressed_to_int8(tmp_path: Path, student: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    (tmp_path / "recipe.toml").write_text('[[steps]]\nstep = "quantise"\nmethod = "weights"\nbits = 8\n')
    out = tmp_path / "compressed"
    options: dict[str, Any] = {"latency_seconds": 0.001, "recipe": tmp_path / "recipe.toml"}
    report = compression.run(CompressConfig(data=DATA, allow=(DATA,), runs=(student,), out=out, device=GPU, **options))
    rows = {row["name"]: row for row in report.table["rows"]}
    assert list(rows) == ["baseline", "int8-weights"] and not any(row["skipped"] for row in rows.values())
    assert rows["int8-weights"]["perplexity"] == pytest.approx(rows["baseline"]["perplexity"], rel=0.02)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, size=(2, 29))
    assert open_artefact(out / "int8-weights.onnx").predict(tokens).shape == (2, 29, VOCABULARY)
