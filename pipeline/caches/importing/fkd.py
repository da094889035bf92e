"""FKD's soft labels: a file ``NAME.tar`` per image, a list of three arrays saved by ``torch.save`` (no tar at all).

    coordinates (V, 4)   of each of V crops: top, left, height, width, as fractions of the image's height and width
    flip (V,)            whether the crop was mirrored
    labels               (V, 2, K): ids, as floats, and probabilities of the K largest ("marginal_smoothing_k5",
                         "..._k10", "marginal_renorm_k5"); (V, 2): the same of the largest alone ("smoothing");
                         (V, C): all of them ("ori", which its training reads); (V,): ids alone ("hard")

float32, or with --use_fp16 float16 throughout, ids too (exact up to 2,048). Probabilities are a softmax at --temp,
which the file does not name. FerKD uses the same files.

Source: github.com/szq0214/FKD at afd5294, FKD/FKD_SLG/generate_soft_label.py, FKD/FKD_SLG/utils.py, FKD/utils_FKD.py.

Crop c becomes view c, none of them plain. Coordinates and flip become the feature ``crop``, float16 (2, 5), which lost
nothing that matters: the values and what float16 left of them; their float32 sum is the source's to 6e-8.

A cache lies view by view and these files image by image, so that each is read once and its rows are put aside in an
unnamed file beside the output, as large as they are. The paths are held in memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.caches.importing.full import Full, from_values
from pipeline.caches.importing.kept import Kept
from pipeline.caches.importing.pickled import read_arrays
from pipeline.caches.importing.source import Batch, Facts, Source, summed
from pipeline.errors import DataError, EncodingError
from pipeline.progress import Progress
from pipeline.store import FeatureSpec
from pipeline.workspace import room_for

CROP = "crop"
CROP_WHAT = "FKD's top, left, height, width, flip of the crop; their remainders after float16"
_ABOUT = 64 << 20
"""Bytes of rows that are gathered before they are put aside."""


class FKD(Source):
    """A folder of such files, at any depth; an id is the path within it, without the suffix."""

    format: ClassVar[str] = "fkd"

    def __init__(
        self,
        folder: Path,
        *,
        aside: Path,
        classes: int | None,
        split: str = "train",
        views: int = 0,
        temperature: float = 1.0,
    ) -> None:
        """``aside``: a folder with room; ``temperature``: of the softmax. ``classes`` tells (V, C) from (V, 2)."""
        self.folder, self.split, self.views, self.temperature = folder, split, views, temperature
        self.classes = classes
        self.files = sorted(folder.rglob("*.tar"))
        if not self.files:
            raise DataError(f"{folder} should hold FKD's files, NAME.tar for every image; there is none")
        self._aside = aside
        self._rows: IO[bytes] | None = None
        self._shape = "topk"
        self._record: np.dtype[Any] = np.dtype([])

    def scan(self, progress: Progress) -> dict[str, Any]:
        """See Source. Puts the rows of every file aside, view by view."""
        found: list[tuple[str, int, str]] = []
        waiting: list[npt.NDArray[Any]] = []
        self._aside.mkdir(parents=True, exist_ok=True)
        self._rows = tempfile.TemporaryFile(dir=self._aside)  # noqa: SIM115  # closed when the source goes
        with progress.bar("read", len(self.files), "file") as bar:
            for number, path in enumerate(self.files):
                data = path.read_bytes()
                found.append((path.relative_to(self.folder).as_posix(), len(data), hashlib.sha256(data).hexdigest()))
                waiting.append(self._rows_of(path, data, first=not number))
                if len(waiting) * waiting[0].nbytes >= _ABOUT or number == len(self.files) - 1:
                    self._put(number + 1 - len(waiting), waiting)
                    waiting = []
                bar.update()
        return summed(found)

    def _rows_of(self, path: Path, data: bytes, *, first: bool) -> npt.NDArray[Any]:
        """The (V,) records of one file. Raises DataError where it is not like the others."""
        arrays = read_arrays(data, str(path))
        if len(arrays) != 3:
            raise DataError(f"{path} should hold coordinates, flips and labels; found {len(arrays)} arrays")
        coordinates, flips, labels = arrays
        crops = len(labels) if labels.ndim else 0
        shapes = (coordinates.shape, flips.shape, flips.dtype.kind, coordinates.dtype.kind)
        if not crops or shapes != ((crops, 4), (crops,), "b", "f") or not np.isfinite(coordinates).all():
            raise DataError(
                f"{path} should hold coordinates (V, 4), flips (V,) and labels (V, ...) of V crops; found "
                f"{', '.join(f'{a.dtype} {a.shape}' for a in arrays)}"
            )
        if first:
            self._shape = self._kind(path, labels)
            self.views = self.views or crops
            shape = labels.shape[1:]
            self._record = np.dtype([("said", labels.dtype, shape), ("coordinates", "f4", (4,)), ("flip", "?")])
        said = self._record["said"]
        if labels.shape[1:] != said.shape or labels.dtype != said.base or crops < self.views:
            raise DataError(
                f"{path} should hold labels of {self.views} crops, {said.base} {said.shape} each, like "
                f"{self.files[0].name}; found {crops} of {labels.dtype} {labels.shape[1:]}"
            )
        ids = labels[:, 0] if self._shape != "all" else np.zeros(1)
        if not (np.isfinite(ids) & (ids == np.floor(ids))).all():
            raise DataError(f"{path} should hold class ids, whole numbers, before their probabilities")
        rows = np.empty(self.views, self._record)
        rows["said"], rows["flip"] = labels[: self.views], flips[: self.views]
        rows["coordinates"] = coordinates[: self.views]
        return rows

    def _kind(self, path: Path, labels: npt.NDArray[Any]) -> str:
        shape = labels.shape[1:]
        if not shape:
            raise DataError(f"{path} holds hard labels, a class for each crop and no probabilities: no soft labels")
        if labels.dtype.kind == "f":
            if len(shape) == 2 and shape[0] == 2:
                return "topk"
            if shape == (2,) and self.classes != 2:
                return "largest"
            if len(shape) == 1 and shape[0] > 2 and self.classes in (None, shape[0]):
                return "all"
        raise DataError(
            f"{path} should hold labels (V, 2, K), (V, 2) or (V, {self.classes or 'C'}) of V crops; found "
            f"{labels.dtype} {labels.shape}. Is --classes right? (V, 2) of two classes could be either"
        )

    def _put(self, first: int, waiting: Sequence[npt.NDArray[Any]]) -> None:
        rows, size, many = np.stack(waiting, axis=1), self._record.itemsize, len(self.files)
        with room_for(self._aside, self.views * many * size):
            for view in range(self.views):
                self._file.seek((view * many + first) * size)
                self._file.write(rows[view].tobytes())
            self._file.flush()

    @property
    def _file(self) -> IO[bytes]:
        if self._rows is None:
            raise ValueError("a source is scanned before it is read")
        return self._rows

    def close(self) -> None:
        """See Source."""
        if self._rows is not None:
            self._rows.close()

    def facts(self) -> Facts:
        """See Source."""
        said = self._record["said"]
        kept = {"topk": said.shape[-1], "largest": 1, "all": None}[self._shape]
        return Facts(
            splits={self.split: (len(self.files), self.views)},
            classes=said.shape[0] if self._shape == "all" else None,
            precision=said.base,
            probabilities=True,
            kept=kept,
            augmented=True,
            features={CROP: (CROP_WHAT, FeatureSpec((2, 5)))},
        )

    def read(self, split: str, view: int, first: int, count: int, classes: int) -> Batch:
        """See Source."""
        size = self._record.itemsize
        self._file.seek((view * len(self.files) + first) * size)
        rows = np.frombuffer(self._file.read(count * size), self._record)
        nothing = np.full(count, -1, np.int64)
        paths = [path.relative_to(self.folder).as_posix() for path in self.files[first : first + count]]
        return Batch(
            ids=[path.removesuffix(".tar") for path in paths],
            said=self._said(rows["said"], classes, paths),
            seeds=nothing,
            labels=nothing,
            features={CROP: crop_feature(rows["coordinates"], rows["flip"])},
        )

    def _said(self, said: npt.NDArray[Any], classes: int, paths: Sequence[str]) -> Full | Kept:
        if self._shape == "all":
            try:
                return from_values(np.ascontiguousarray(said), "probs", self.temperature)
            except EncodingError as error:
                raise EncodingError(f"{self.folder / paths[error.row or 0]}: {error}") from None
        ids, probs = (said[:, 0], said[:, 1]) if self._shape == "topk" else (said[:, :1], said[:, 1:])
        exact = 2.0 ** (np.finfo(said.dtype).nmant + 1)
        if classes - 1 > exact:
            raise DataError(
                f"these files keep class ids as {said.dtype}, exact up to {exact:,.0f}: of {classes:,} classes several "
                "have the same. Such labels cannot be read"
            )
        return Kept(ids.astype(np.int64), np.ascontiguousarray(probs))


def crop_feature(coordinates: npt.NDArray[Any], flip: npt.NDArray[np.bool_]) -> npt.NDArray[np.float16]:
    """``coordinates`` (N, 4) and ``flip`` (N,) as (N, 2, 5) float16: values, and what is left of them after rounding.

    >>> crop = crop_feature(np.array([[0.1, 0.2, 0.7, 0.9]], np.float32), np.array([True]))
    >>> [round(float(value), 6) for value in crop.astype(np.float32).sum(axis=1)[0]]
    [0.1, 0.2, 0.7, 0.9, 1.0]
    """
    values = np.concatenate([coordinates.astype(np.float32), flip[:, None].astype(np.float32)], axis=1)
    large = values.astype(np.float16)
    return np.stack([large, (values - large.astype(np.float32)).astype(np.float16)], axis=1)
