"""How faithful stored labels are to the teacher's own distributions, and how often the teacher is right.

Counted part by part while dumping (on a fixed sample of entries, so that measuring costs next to nothing), added up
in the manifest, and used again by verification and by the encodings' benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encodings import Encoding
from pipeline.metrics import log_softmax
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK

Floats = npt.NDArray[np.floating[Any]]


def stored_logprobs(soft: SoftLabels, temperature: float) -> npt.NDArray[np.float64]:
    """Log-probabilities (N, C) that numpy soft labels stand for; a top-k residual is spread evenly over its classes.

    Sampled labels stand for their weights, which are -inf for what was not drawn, and need not come to 1. Raises
    TemperatureError when top-k or sampled labels did not keep this temperature.
    """
    if isinstance(soft, Sampled):
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(_weights(soft, temperature)))
    if not isinstance(soft, TopK):
        return log_softmax(soft.logits, temperature)
    logprobs, residual = soft.at(temperature)
    dropped = soft.num_classes - soft.ids.shape[1]
    each = residual.astype(np.float64) - np.log(dropped) if dropped else np.full(len(soft), -np.inf)
    full = np.repeat(each[:, None], soft.num_classes, axis=1)
    np.put_along_axis(full, soft.ids.astype(np.int64), logprobs.astype(np.float64), axis=1)
    return full


def _weights(soft: Sampled, temperature: float) -> npt.NDArray[np.float64]:
    """Sampled labels with 0 for what was not drawn, (N, C)."""
    wide = np.zeros((len(soft), soft.num_classes))
    wide[np.asarray(soft.rows), np.asarray(soft.ids, dtype=np.int64)] = soft.at(temperature)
    return wide


def kl_divergence(logprobs_NC: Floats, other_NC: Floats) -> npt.NDArray[np.float64]:
    """KL(p || q) in nats of each row (N,), from log-probabilities; classes of no mass count nothing.

    >>> p = np.log(np.array([[0.5, 0.5]])); q = np.log(np.array([[0.25, 0.75]]))
    >>> round(float(kl_divergence(p, q)[0]), 4), float(kl_divergence(p, p)[0])
    (0.1438, 0.0)
    """
    p = np.exp(logprobs_NC)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(p > 0, p * (logprobs_NC - other_NC), 0.0).sum(axis=1))


class Fidelity:
    """Sums over the entries of one part; ``totals`` is a flat dictionary that adds up over parts.

    Draws are right on average, and infinitely far by KL from what they were drawn from. Of them it is counted instead
    how many classes a row has, what its weights come to, and how far they are from its probabilities, squared.
    """

    def __init__(self, encoding: Encoding, classes: int) -> None:
        self.encoding, self.classes = encoding, classes
        self.temperatures = encoding.temperatures or (1.0, 4.0)
        self.labelled = self.correct = self.compared = self.agreed = 0
        self.kl_sum = {} if encoding.draws else dict.fromkeys(self.temperatures, 0.0)
        self.kl_max = dict(self.kl_sum)
        self.drawn = {"drawn_classes_sum": 0.0, "drawn_weight_sum": 0.0, "drawn_error_sum": 0.0}

    def count(self, predicted_N: npt.NDArray[np.int64], labels_N: npt.NDArray[np.int64]) -> None:
        """Count the teacher's hits on the rows that have a hard label."""
        known = labels_N >= 0
        self.labelled += int(known.sum())
        self.correct += int((predicted_N == labels_N)[known].sum())

    def compare(self, made_from: Floats | SoftLabels, stored: Mapping[str, npt.NDArray[Any]] | SoftLabels) -> None:
        """Compare the stored form of some rows, arrays or what they decode to, with the logits (N, C), or the soft
        labels, that they were made from.
        """
        source = Dense(made_from) if isinstance(made_from, np.ndarray) else made_from
        soft = self.encoding.decode(stored, self.classes) if isinstance(stored, Mapping) else stored
        self.compared += len(source)
        if isinstance(soft, Sampled):
            self._compare_draws(source, soft)
            return
        for temperature in self.temperatures:
            exact, kept = stored_logprobs(source, temperature), stored_logprobs(soft, temperature)
            kl = np.maximum(kl_divergence(exact, kept), 0.0)
            self.kl_sum[temperature] += float(kl.sum())
            self.kl_max[temperature] = max(self.kl_max[temperature], float(kl.max(initial=0.0)))
        best = source.logits if isinstance(source, Dense) else exact
        self.agreed += int((kept.argmax(axis=1) == best.argmax(axis=1)).sum())

    def _compare_draws(self, source: SoftLabels, soft: Sampled) -> None:
        if not len(soft):
            return
        exact = np.exp(stored_logprobs(source, soft.temperature))
        weights = _weights(soft, soft.temperature)
        self.agreed += int((weights.argmax(axis=1) == exact.argmax(axis=1)).sum())
        self.drawn["drawn_classes_sum"] += len(soft.ids)
        self.drawn["drawn_weight_sum"] += float(weights.sum())
        self.drawn["drawn_error_sum"] += float(np.square(weights - exact).sum())

    def totals(self) -> dict[str, float]:
        """The sums, as the statistics of a part."""
        sums: dict[str, float] = {
            "labelled": self.labelled,
            "correct": self.correct,
            "compared": self.compared,
            "agreed": self.agreed,
        }
        if self.encoding.draws:
            sums.update(self.drawn)
        for temperature in self.kl_sum:
            sums[f"kl_sum_T{temperature:g}"] = self.kl_sum[temperature]
            sums[f"kl_max_T{temperature:g}"] = self.kl_max[temperature]
        return sums


def possible(statistics: Mapping[str, float], positions: int) -> bool:
    """Whether ``statistics`` can be the totals of a part of so many positions; what is none of them can be anything.

    >>> possible({"compared": 3, "agreed": 4}, 8), possible({"compared": 3, "agreed": 3, "bound": 0.1}, 8)
    (False, True)
    """

    def at_most(name: str, most: float) -> bool:
        return 0 <= statistics.get(name, 0.0) <= most

    compared = statistics.get("compared", 0.0)
    counts = at_most("labelled", positions) and at_most("correct", statistics.get("labelled", 0.0))
    counts = counts and at_most("compared", positions) and at_most("agreed", compared)
    sums = [name for name in statistics if name.startswith("kl_sum_T")]
    largest = {name: statistics.get(name.replace("sum", "max"), -1.0) for name in sums}
    return counts and all(largest[n] >= 0 and at_most(n, compared * largest[n] * 1.001 + 1e-9) for n in sums)


def summarise(parts: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The fidelity of a cache from the (split, statistics) of its parts, as the manifest keeps it.

    ``teacher_accuracy`` is per split, over every view; ``kl`` is in nats, mean and largest, per temperature.
    ``draws``, of sampled labels alone: means over the rows compared of the classes that were hit, of what their weights
    come to, and of the squared error of the weights, summed over classes.
    """
    sums: dict[str, float] = {}
    hits: dict[str, list[float]] = {}
    for split, statistics in parts:
        for name, value in statistics.items():
            larger = name.startswith(("kl_max", "bound"))
            sums[name] = max(sums.get(name, 0.0), value) if larger else sums.get(name, 0.0) + value
        seen = hits.setdefault(split, [0.0, 0.0])
        seen[0] += statistics.get("correct", 0)
        seen[1] += statistics.get("labelled", 0)
    compared = sums.get("compared", 0.0)
    kl = {
        name.removeprefix("kl_sum_T"): {"mean": sums[name] / compared, "max": sums[name.replace("sum", "max")]}
        for name in sorted(sums)
        if name.startswith("kl_sum_T") and compared
    }
    drawn = {
        name.removeprefix("drawn_").removesuffix("_sum"): total / compared
        for name, total in sorted(sums.items())
        if name.startswith("drawn_") and compared
    }
    return {
        **({"draws": drawn} if drawn else {}),
        "entries_compared": int(compared),
        "top1_agreement": sums["agreed"] / compared if compared else None,
        "kl": kl,
        "teacher_accuracy": {split: correct / known for split, (correct, known) in hits.items() if known},
    }
