"""Soft labels kept in one encoding, kept in another: what can be done without asking the teacher again.

All logits can become anything. Kept classes can become fewer, at some of the same temperatures: what is dropped now
joins the residual. The other way needs what is not there, and is refused by name, as is anything else out of draws,
and draws out of kept classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import Arrays, Dense, Encoding, Keys, Sampled, TopK
from pipeline.errors import ConfigError, EncodingError
from pipeline.softlabels import Sampled as SampledLabels
from pipeline.softlabels import SoftLabels, is_kept
from pipeline.softlabels import TopK as TopKLabels

Floats = npt.NDArray[np.float64]


def check_recoding(source: Encoding, target: Encoding, classes: int, where: str) -> None:
    """Raise ConfigError, naming ``where`` the labels are, when ``source`` does not hold what ``target`` keeps."""
    try:
        target.specs(classes)
    except EncodingError as error:
        raise ConfigError(f"{where}: {error}") from None
    if isinstance(source, Sampled):
        if source == target:
            return
        raise ConfigError(
            f"{where} keeps the classes that {source.n} draws hit; what the others had is not there, so nothing else "
            "can be made of it. Dump again"
        )
    if not isinstance(source, TopK):
        return
    if isinstance(target, Sampled):
        raise ConfigError(
            f"{where} keeps the {source.k} largest of {classes} logits; of the others only the sum is there, and draws "
            "would have to hit them one by one. Dump again with --encoding sampled"
        )
    if isinstance(target, Dense):
        raise ConfigError(
            f"{where} keeps the {source.k} largest of {classes} logits; the others are not there, so it cannot become "
            "dense. Dump again with --encoding dense"
        )
    if not isinstance(target, TopK) or target.k > source.k:
        raise ConfigError(f"{where} keeps {source.k} classes of each row; --k should be at most that")
    absent = [t for t in target.temperatures if not is_kept(t, source.temperatures)]
    if absent:
        raise ConfigError(
            f"{where} keeps the dropped mass at T = {', '.join(f'{t:g}' for t in source.temperatures)}; it cannot be "
            f"had at {', '.join(f'{t:g}' for t in absent)}. Leave that --temperature out, or dump again"
        )


def recode(soft: SoftLabels, target: Encoding, classes: int, keys: Keys | None = None) -> Arrays:
    """The arrays of ``target`` for numpy soft labels, which ``check_recoding`` has let through; ``keys`` for draws.

    Raises EncodingError, with ``row`` set, for values that ``target`` cannot hold.
    """
    if isinstance(soft, TopKLabels):
        if not isinstance(target, TopK):
            raise EncodingError("top-k labels hold no other logits")
        return _fewer(soft, target, classes)
    if isinstance(soft, SampledLabels):
        raise EncodingError("sampled labels hold no logits")
    return target.encode(soft.logits, keys)


def carried_bound(source: float, source_encoding: Encoding, target: Encoding, own: float) -> float:
    """The declared bound after a second encoding that is off by at most ``own`` from labels off by at most ``source``.

    Errors of one kind add up. A logit off by b moves a probability at T by a factor of at most exp(2b/T), so by at
    most expm1(2b/T) of a probability that is at most 1.
    """
    if target.draws:  # nothing bounds those
        return 0.0
    if isinstance(target, TopK) and isinstance(source_encoding, Dense):
        return min(1.0, own + math.expm1(min(2.0 * source / min(target.temperatures), 700.0)))
    return own + source


def lost(soft: SoftLabels, target: Encoding, arrays: Arrays, classes: int) -> float:
    """A bound on what ``arrays`` of ``target``, made of ``soft``, are off by from that.

    Few bits take for granted that kept classes and residual come to 1; those of imported labels may not quite.
    """
    own, gap = target.bound(arrays, classes), 0.0
    if isinstance(soft, TopKLabels) and isinstance(target, TopK) and target.least_format > 1 and len(soft):
        for temperature in target.temperatures:
            logprobs, residual = (np.asarray(each, dtype=np.float64) for each in soft.at(temperature))
            gap = max(gap, float(np.abs(np.exp(logprobs).sum(axis=1) + np.exp(residual) - 1.0).max()))
    return own + gap


def _fewer(soft: TopKLabels, target: TopK, classes: int) -> dict[str, npt.NDArray[Any]]:
    """The ``target.k`` largest kept classes; the mass of those that go joins the residual, summed in float64."""
    logits = np.asarray(soft.logits, dtype=np.float32)
    order = np.argsort(-logits, axis=1, kind="stable")
    keep = np.sort(order[:, : target.k], axis=1)
    drop = np.sort(order[:, target.k :], axis=1)
    ids = np.take_along_axis(np.asarray(soft.ids), keep, axis=1)
    columns = [soft.column(t) for t in target.temperatures]
    residual = np.asarray(soft.log_residual, dtype=np.float64)[:, columns]
    if drop.shape[1]:
        gone = [_dropped(soft, drop, t) for t in target.temperatures]
        residual = np.logaddexp(residual, np.stack(gone, axis=1))
        residual = np.maximum(residual, float(np.finfo(np.float32).min))
    kept = np.take_along_axis(logits, keep, axis=1)
    normaliser = np.asarray(soft.log_normaliser, dtype=np.float32)[:, columns]
    return target.packed(classes, ids, kept, normaliser, residual.astype(np.float32))


def _dropped(soft: TopKLabels, drop: npt.NDArray[np.int64], temperature: float) -> Floats:
    """Log of the mass (N,) of the kept classes at the places ``drop`` (N, D)."""
    logprobs, _ = soft.at(temperature)
    gone = np.take_along_axis(np.asarray(logprobs, dtype=np.float64), drop, axis=1)
    return np.asarray(np.logaddexp.reduce(gone, axis=1))
