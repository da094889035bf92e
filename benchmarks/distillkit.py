"""Bytes per token and faithfulness of top-k labels of a large vocabulary, beside DistillKit's two presets.

DistillKit's code runs where ``DISTILLKIT`` names a copy of it: ``git clone https://github.com/arcee-ai/DistillKit``,
at a61c2e7 for the figures in results/. Without it, only ours is measured.

The teacher is made of random numbers: token v of V has a log-frequency of -ln(rank + 10), with ranks that follow the
ids up to a random factor, as those of byte-pair encodings do; a position adds normal noise to every logit, of a
standard deviation of its own, 3 to 6.2: 5.2 bits on average, with a long tail. No real teacher has looked at anything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.measure import Row, Settings, Table, in_turn, rate
from pipeline.caches.importing.distillkit import decode
from pipeline.caches.importing.distillkit_config import Compression
from pipeline.caches.importing.logprobs import TopLogprobs, encode
from pipeline.encodings import TopK
from pipeline.softlabels import TopK as TopKLabels
from pipeline.store import Layout
from pipeline.store.files import LocalFiles
from pipeline.store.fitting import label_backend
from pipeline.store.parts import FileRecord, PartRecord

Wide = npt.NDArray[np.float64]
VOCABULARY = 128_256
MOST = 192
TAIL = 64
BATCH = 128
CHUNK = 256
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {"k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]},
    "budget": {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]},
}
COMMON = {"exact_dtype": "bfloat16", "term_dtype": "float32", "residual_bins": [], "delta_encoding": False}


@dataclass(frozen=True)
class Positions:
    """N positions of the teacher, by what their divergences need.

    ``ids`` and ``logprobs`` (N, MOST): the largest, falling; ``negentropy`` (N,): sum of p log p; ``background`` (V,):
    a distribution for the rest, from other positions; ``crossed`` (N,): sum of p log background.
    """

    classes: int
    ids: npt.NDArray[np.int64]
    logprobs: Wide
    negentropy: Wide
    background: Wide
    crossed: Wide

    def kl(self, ids: npt.NDArray[np.int64], logq: Wide, *, background: bool = False) -> Wide:
        """(N,): KL(teacher || q), q having ``logq`` (N, K) of its kept ``ids`` and spreading 1 - sum over the others:
        evenly, or as ``background`` does there. What comes to more than 1 is scaled down."""
        p = np.exp(self._of(ids))
        total = np.exp(logq).sum(axis=1)
        # DistillKit's own floor of a dropped class, 1e-8, serves both.
        rest = np.maximum(1.0 - total, 1e-8 * (self.classes - ids.shape[1]))
        tail = 1.0 - p.sum(axis=1)
        if background:
            spread = self.crossed - (p * np.log(self.background[ids])).sum(axis=1)
            spread -= tail * np.log(1.0 - self.background[ids].sum(axis=1))
        else:
            spread = -tail * np.log(self.classes - ids.shape[1])
        cross: Wide = (p * logq).sum(axis=1) + tail * np.log(rest) + spread
        return np.asarray(self.negentropy - cross + np.log(total + rest))

    def _of(self, ids: npt.NDArray[np.int64]) -> Wide:
        """The teacher's log-probabilities (N, K) of ``ids``, all of them among the largest."""
        order = np.argsort(self.ids, axis=1)
        ordered = np.take_along_axis(self.ids, order, axis=1)
        places = np.array([np.searchsorted(row, wanted) for row, wanted in zip(ordered, ids, strict=True)])
        return np.take_along_axis(self.logprobs, np.take_along_axis(order, places, axis=1), axis=1)


def logits(rows: int, classes: int, seed: int) -> Tensor:
    """(rows, V) float32 of the teacher."""
    own = torch.Generator().manual_seed(1)
    rank = torch.arange(classes) * torch.randn(classes, generator=own).mul(0.7).exp()
    random = torch.Generator().manual_seed(seed)
    spread = 3.0 + 3.2 * torch.rand(rows, 1, generator=random)
    return torch.randn(rows, classes, generator=random).mul_(spread).sub_((rank + 10).log())


def positions(rows: int, classes: int) -> Positions:
    """So many positions, and a background out of a quarter as many others: the mean of what they leave to all but their
    TAIL largest, and a tenth of it spread evenly, for tokens that were never met there."""
    mean = torch.full((classes,), 0.1 / classes, dtype=torch.float64)
    batches = max(1, rows // 4 // BATCH)
    for seed in range(batches):
        p = torch.softmax(logits(BATCH, classes, 10_000 + seed), dim=1)
        p.scatter_(1, p.topk(TAIL).indices, 0.0)
        mean += 0.9 * (p / p.sum(dim=1, keepdim=True)).mean(dim=0) / batches
    background = mean.log()
    found: dict[str, list[Any]] = {"ids": [], "logprobs": [], "negentropy": [], "crossed": []}
    for seed in range(-(-rows // BATCH)):
        logprobs = torch.log_softmax(logits(min(BATCH, rows - seed * BATCH), classes, seed).double(), dim=1)
        largest, ids = logprobs.topk(MOST)
        p = logprobs.exp()
        for name, values in (("ids", ids), ("logprobs", largest), ("crossed", p @ background)):
            found[name].append(values.numpy())
        found["negentropy"].append((p * logprobs).sum(dim=1).numpy())
    joined = {name: np.concatenate(pieces) for name, pieces in found.items()}
    return Positions(classes, background=np.exp(background.numpy()), **joined)


@dataclass(frozen=True)
class Form:
    """How K classes are kept: ``TopK`` of ``dtype``; the mass of the others goes evenly, or as a background does."""

    dtype: str
    background: bool = False

    @property
    def name(self) -> str:
        """In a few words."""
        return f"top-k {self.dtype}" + (", residual along a background" if self.background else "")

    def kl(self, of: Positions, k: int) -> float:
        """Mean KL(teacher || kept)."""
        encoding = TopK(k, self.dtype)
        soft = encoding.decode(arrays_of(of, encoding), of.classes)
        return float(of.kl(soft.ids, soft.at(1.0)[0].astype(np.float64), background=self.background).mean())

    def bytes(self, of: Positions, k: int) -> float:
        """Bytes of a position as the zarr store writes them."""
        return sum(map(len, Stored.of(of, TopK(k, self.dtype)).files.values())) / len(of.ids)

    def smallest(self, of: Positions, limit: float) -> int | None:
        """The fewest classes with a mean KL of at most ``limit``."""
        low, high = 1, MOST
        if self.kl(of, high) > limit:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.kl(of, middle) <= limit else (middle + 1, high)
        return low


HALF, BYTE, FOUR_BITS = Form("float16"), Form("int8"), Form("int4")
FORMS = (HALF, BYTE, FOUR_BITS, Form("int4", background=True))


def arrays_of(positions: Positions, encoding: TopK) -> dict[str, npt.NDArray[Any]]:
    """Stored arrays for the largest log-probabilities of each position."""
    said = TopLogprobs(positions.ids[:, : encoding.k], positions.logprobs[:, : encoding.k])
    exact = TopK(encoding.k)
    soft = exact.decode(encode(said, positions.classes, exact).arrays, positions.classes)
    return encoding.packed(positions.classes, soft.ids, soft.logits, soft.log_normaliser, soft.log_residual)


@dataclass(frozen=True)
class Stored:
    """The files of one part of a cache, made from sparse log-probabilities, and read back."""

    encoding: TopK
    classes: int
    layout: Layout
    files: dict[str, bytes]

    @classmethod
    def of(cls, positions: Positions, encoding: TopK) -> Stored:
        """Encode and write, in memory."""
        made = arrays_of(positions, encoding)
        layout = Layout.of({"train": (len(positions.ids), 1)}, len(positions.ids))
        backend = label_backend("zarr", encoding, positions.classes, layout)
        return cls(encoding, positions.classes, layout, backend.encode(layout.parts[0], made))

    def reader(self, folder: Path) -> Callable[[], TopKLabels]:
        """A function that reads and decodes the files, which are written to ``folder`` first."""
        for path, data in self.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        backend = label_backend("zarr", self.encoding, self.classes, self.layout)
        part = self.layout.parts[0]
        sizes = {path: len(data) for path, data in self.files.items()}
        files = LocalFiles(folder)
        records = {path: FileRecord.of(data) for path, data in self.files.items()}
        record = PartRecord.of(part, records, {"bound": 0.0}, backend.seals(files, part, sizes))
        arrays = {n: np.empty((part.positions, *s), d) for n, (s, d) in backend.shapes().items()}

        def read() -> TopKLabels:
            backend.read(files, record, arrays)
            return self.encoding.decode(arrays, self.classes)

        return read


def taken(action: Callable[[], object]) -> float:
    """Processor time of one call, in seconds: others may be at work on this machine."""
    began = time.process_time()
    action()
    return time.process_time() - began


def distillkit() -> Any:
    """DistillKit's compression package, or None without a copy of it."""
    path = os.environ.get("DISTILLKIT")
    if not path:
        return None
    sys.path.insert(0, path)
    try:
        import distillkit.compression as package  # type: ignore[import-not-found]
    finally:
        sys.path.remove(path)
    return package


def as_parquet(path: Path, packed: dict[str, Tensor], rows: int) -> float:
    """Bytes of a position in a file as DistillKit's capture writes them, sequences of up to 1,024 tokens a row."""
    columns = {name: [piece.tolist() for piece in tensor[0].split(1024)] for name, tensor in packed.items()}
    pq.write_table(pa.table(columns, pa.schema([(name, pa.list_(pa.list_(pa.uint8()))) for name in columns])), path)
    return path.stat().st_size / rows


def run(settings: Settings) -> Table:
    """Bytes at equal divergence, and tokens per second."""
    classes = settings.pick(VOCABULARY, 5_000)
    of = positions(settings.pick(4_096, 64), classes)
    on = f"V = {classes:,}, {-of.negentropy.mean() / np.log(2):.1f} bits"
    rows: list[Row] = []
    theirs = distillkit()
    for k in (12, 50, 128):
        for form in (HALF, BYTE, FOUR_BITS):
            told = f"{form.bytes(of, k):.1f} B, KL {form.kl(of, k):.3f}"
            rows.append(Row(f"{form.name}, K = {k}: bytes per token, KL in nats", on, told))
    for name, options in PRESETS.items():
        if theirs is not None:
            rows += beside(settings, theirs, name, options, of, on)
    shown = (
        "" if theirs is not None else " It was not here: DISTILLKIT should name a copy (the first lines of the module)."
    )
    return Table(
        "DistillKit",
        rows,
        (
            "KL is from the whole distribution to what is kept, residual included, spread evenly unless the row says "
            "otherwise; the mean over positions. Bytes of ours are those of the label files in the zarr store, "
            "checksums included; of DistillKit those of its packed rows (its Parquet files in brackets)." + shown,
            "At equal KL: the fewest classes whose KL is at most the preset's. All are encodings of this release, but "
            f"for the residual along a background: what other positions give, on average, to all but their {TAIL} "
            "largest, kept once for all. The noise here is independent between tokens and positions: all that a "
            "background can know is how frequent tokens are.",
            "Speeds: by processor time, one thread; sparse values in memory to bytes and back, DistillKit's in batches "
            f"of {CHUNK} (larger ones are slower). Ours reads files from the page cache and checks their checksums.",
        ),
    )


def beside(settings: Settings, theirs: Any, name: str, options: dict[str, Any], of: Positions, on: str) -> list[Row]:
    """The rows of one preset."""
    config = theirs.DistributionQuantizationConfig.model_validate({"d": of.classes, **COMMON, **options})
    compressor, k = theirs.LogprobCompressor(config=config), options["k"]
    ids, values = torch.from_numpy(of.ids[None, :, :k].copy()), torch.from_numpy(of.logprobs[None, :, :k]).float()
    packed = compressor.compress_from_sparse(ids, values)
    found_ids, found = compressor.decompress_to_sparse(packed)
    limit = float(of.kl(found_ids[0].numpy(), found[0].double().numpy()).mean())
    size = sum(tensor.shape[-1] for tensor in packed.values())
    file = as_parquet(settings.scratch / f"{name}.parquet", packed, len(of.ids))
    rows = [
        Row(f"DistillKit {name}, K = {k}: bytes per token, KL in nats", on, f"{size} B ({file:.0f}), KL {limit:.3f}")
    ]
    for form in FORMS:
        fewest = form.smallest(of, limit)
        what = f"{form.name}, at the KL of {name}: bytes per token"
        taken_by = np.inf if fewest is None else form.bytes(of, fewest)
        told = f"more than K = {MOST}" if fewest is None else f"{taken_by:.1f} B at K = {fewest}"
        aim = (f"below {size}", bool(taken_by < size)) if form is FOUR_BITS else ()
        rows.append(Row(what, on, told, *aim))
    sparse = list(zip(ids.split(CHUNK, 1), values.split(CHUNK, 1), strict=True))
    pieces = [compressor.compress_from_sparse(*piece) for piece in sparse]
    whole = [packed[column][0].numpy() for column in ("bytepacked_indices", "compressed_logprobs")]
    described = Compression.parse({"d": of.classes, **COMMON, **options})
    actions = {
        "their encode": lambda: taken(lambda: [compressor.compress_from_sparse(*piece) for piece in sparse]),
        "their decode": lambda: taken(lambda: [compressor.decompress_to_sparse(piece) for piece in pieces]),
        "our reading": lambda: taken(lambda: decode(*whole, described)),
    }
    ours = {form: TopK(form.smallest(of, limit) or MOST, form.dtype) for form in (HALF, FOUR_BITS)}
    for form, encoding in ours.items():
        reader = Stored.of(of, encoding).reader(settings.scratch / f"{name}-{form.dtype}")
        actions[f"{form.dtype} encode"] = lambda kept=encoding: taken(lambda: Stored.of(of, kept))
        actions[f"{form.dtype} decode"] = lambda read=reader: taken(read)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = in_turn(actions, settings.pick(7, 1))
    torch.set_num_threads(threads)
    for what in ("encode", "decode"):
        other = rate(len(of.ids), times[f"their {what}"])
        for form, encoding in ours.items():
            own = rate(len(of.ids), times[f"{form.dtype} {what}"])
            told = f"{own:,.0f} and {other:,.0f} ({own / other:.2g} times)"
            title = f"{what}, {form.name}, K = {encoding.k}, and DistillKit {name}: tokens/s"
            rows.append(Row(title, on, told))
    reading, other = (rate(len(of.ids), times[what]) for what in ("our reading", "their decode"))
    told = f"{reading:,.0f} and {other:,.0f} ({reading / other:.2g} times)"
    rows.append(Row(f"DistillKit {name} read by `cache import` and by itself: tokens/s", on, told))
    return rows
