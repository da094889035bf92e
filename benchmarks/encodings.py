"""Bytes per label and faithfulness of each encoding: on digits with a real teacher, and on 1,000 classes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Row, Settings, Table
from benchmarks.synthetic import Points, opinion
from pipeline import dump, teacher
from pipeline.datasets import load_dataset
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.fidelity import kl_divergence, log_softmax, stored_logprobs
from pipeline.models import build_model, load_weights
from pipeline.store import STORES, Cache, open_cache

TEMPERATURES = (1.0, 4.0)
CLASSES = 1000

Logits = npt.NDArray[np.float32]


def encodings(*kept: int) -> list[Encoding]:
    """Every encoding, top-k with each of ``kept``."""
    dense: list[Encoding] = [Dense(dtype) for dtype in Dense.choices]
    return dense + [TopK(k, dtype, TEMPERATURES) for k in kept for dtype in TopK.choices]


def run(settings: Settings) -> Table:
    """Bytes and divergence of each encoding in both stores."""
    weights, accuracy = digits_teacher(settings)
    digits = {"data": "digits", "teacher": "cnn-32", "weights": weights}
    rows = settings.pick(20_000, 600)
    points = {
        "data": "benchmarks.synthetic:Points",
        "data_args": (f"rows={rows}",),
        "teacher": "benchmarks.synthetic:opinion",
    }
    seen = settings.pick(4_000, 300)
    found: list[Row] = []
    for on, sources, chosen in (
        ("digits, 10 classes", digits, encodings(3, 5)),
        ("1,000 classes, synthetic", points, encodings(10, 50)),
    ):
        logits = digits_logits(weights) if sources is digits else synthetic_logits(rows)
        for encoding in chosen:
            caches = {store: make(settings.scratch, sources, encoding, store) for store in STORES}
            sizes = ", ".join(f"{label_bytes(cache):.1f} ({store})" for store, cache in caches.items())
            divergence = ", ".join(f"{kl(caches['zarr'], logits[:seen], t):.1e} (T={t:g})" for t in TEMPERATURES)
            found.append(Row(f"{name(encoding)}: bytes per label; KL in nats", on, f"{sizes}; {divergence}"))
    confidence = np.exp(log_softmax(synthetic_logits(rows)[:seen], 1.0)).max(axis=1)
    return Table(
        "Encodings",
        found,
        (
            "Bytes of the label files alone, holes, checksums and padding included; the index adds 10 to 45 bytes per "
            "entry, mostly its seed and, in the plain view, a sha256. KL is from the teacher's distribution to the "
            "stored one, the mean over entries; the residual of top-k is spread evenly over the dropped classes.",
            f"Digits: the teacher that `fit-teacher` makes ({accuracy}), the plain view of all 1,797 images.",
            f"1,000 classes: {rows:,} synthetic rows, no real teacher. A class is a random direction in 64 "
            "dimensions, an example its class's direction plus noise of random strength, a logit 20 times the cosine "
            f"between the two. The largest probability of a row averages {confidence.mean():.2f} (a tenth of the rows "
            f"lie below {np.quantile(confidence, 0.1):.2f}).",
        ),
    )


def digits_teacher(settings: Settings) -> tuple[Path, str]:
    """Weights of a digits teacher made now, and how good it is."""
    out = settings.scratch / "teacher"
    epochs = settings.pick(15, 1)
    report = teacher.run(teacher.FitTeacherConfig(out=out, epochs=epochs, threads=1, device="cpu"))
    return out / "model.safetensors", f"{epochs} epochs; {report.summary.split(': ', 1)[1].split(';')[0]}"


def digits_logits(weights: Path) -> Logits:
    """The teacher's logits (N, C) of every digit, split by split, as a dump visits them."""
    import torch

    data = load_dataset("digits")
    model = build_model("cnn-32", classes=10, input_shape=data.input_shape)
    load_weights(model, weights)
    rows = np.concatenate([data.rows(split) for split in ("train", "validation", "test")])
    inputs = torch.stack([data.prepare(data.load(int(row))) for row in rows])
    with torch.inference_mode():
        return np.concatenate([batch.numpy() for batch in map(model.eval(), inputs.split(256))])


def synthetic_logits(rows: int) -> Logits:
    """The synthetic teacher's logits (N, C)."""
    import torch

    inputs = Points(rows).inputs(np.arange(rows))
    with torch.inference_mode():
        return np.concatenate([batch.numpy() for batch in map(opinion(), inputs.split(256))])


def make(scratch: Path, sources: dict[str, object], encoding: Encoding, store: str) -> Cache:
    """A cache in ``encoding``, dumped as anybody would."""
    out = Path(tempfile.mkdtemp(dir=scratch)) / "cache"
    described = encoding.describe()
    options = {"encoding": described["name"], "dtype": described["dtype"], "temperature": TEMPERATURES}
    if isinstance(encoding, TopK):
        options["k"] = encoding.k
    dump.run(dump.DumpConfig(**sources, **options, out=out, store=store, device="cpu"))  # type: ignore[arg-type]
    return open_cache(out)


def label_bytes(cache: Cache) -> float:
    """Bytes of the label files per entry."""
    sizes = cache.sizes()
    total = sum(size for path, size in sizes.items() if path.startswith("labels"))
    return total / sum(part.positions for part in cache.parts)


def kl(cache: Cache, logits: Logits, temperature: float) -> float:
    """Mean KL(teacher || stored) over the first rows of the cache."""
    total, row = 0.0, 0
    for part in cache.parts:
        arrays = cache.read_part(part)
        take = min(part.positions, len(logits) - row)
        if take <= 0:
            break
        soft = cache.decode({key: values[:take] for key, values in arrays.items()})
        own = log_softmax(logits[row : row + take], temperature)
        total += float(np.maximum(kl_divergence(own, stored_logprobs(soft, temperature)), 0).sum())
        row += part.positions
    return total / min(row, len(logits))


def name(encoding: Encoding) -> str:
    """An encoding in a few words."""
    top = f"top-{encoding.k}" if isinstance(encoding, TopK) else "dense"
    return f"{top} {encoding.describe()['dtype']}"
