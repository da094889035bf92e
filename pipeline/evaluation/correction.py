"""The bias of classes that a student did not learn to expect, set by how frequent they are (Hinton et al. 2015).

A student that was distilled without any example of a class knows it from the teacher's answers to others, and gives it
too little: Hinton, Vinyals and Dean 2015 (section 3) raise the bias of the missing 3 and find nearly all threes
recognised. They chose the value that does best on the test set. Here it is the one of least negative log-likelihood on
validation, which depends on the labels there by the share of each class alone; the test set is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.errors import ConfigError, DataError, some
from pipeline.evaluation.batches import Predictor
from pipeline.evaluation.scoring import HELD_OUT, labelled_rows, plain_batches
from pipeline.metrics import log_softmax

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-12
"""Largest difference that is left between the mean probability of a class and its share."""
MOST_STEPS = 500


@dataclass(frozen=True)
class Correction:
    """``names`` of n classes, their ``numbers`` in the dataset and ``shares`` (n,) of the validation split; ``biases``:
    the constants (n,) that are added to their logits, for each model (a seed)."""

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    shares: Floats
    biases: Mapping[int, Floats]

    def apply(self, predictors: Mapping[int, Predictor]) -> dict[int, Predictor]:
        """The predictors of the corrected models: float64 logits."""
        return {seed: corrected(predict, self.numbers, self.biases[seed]) for seed, predict in predictors.items()}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "classes": list(self.names),
            "fitted_on": HELD_OUT,
            "shares": self.shares.tolist(),
            "bias": {str(seed): bias.tolist() for seed, bias in self.biases.items()},
        }


def fit_correction(
    names: Sequence[str],
    predictors: Mapping[int, Predictor],
    dataset: Dataset,
    *,
    batch_size: int,
    workers: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> Correction:
    """Constants for the classes called ``names``, jointly, of each model, on the labelled validation examples.

    Of each example its n log-odds are kept, so memory does not grow with the number of classes. Raises ConfigError for
    classes that there are not, or that have no finite constant; DataError for a validation split without labels.
    """
    numbers, shares, rows = known_shares(names, dataset)
    pieces: dict[int, list[Floats]] = {seed: [] for seed in predictors}
    for batch, inputs in plain_batches(dataset, rows, batch_size=batch_size, workers=workers):
        for seed, predict in predictors.items():
            pieces[seed].append(log_odds(predict(inputs), numbers))
        advance(len(batch))
    biases = {seed: fit_biases(np.concatenate(found), shares) for seed, found in pieces.items()}
    return Correction(tuple(names), numbers, shares, biases)


def known_shares(names: Sequence[str], dataset: Dataset) -> tuple[tuple[int, ...], Floats, npt.NDArray[np.int64]]:
    """The numbers of classes, their shares of the labelled validation rows, and those rows; see ``fit_correction``."""
    unknown = [name for name in names if name not in dataset.classes]
    if unknown:
        raise ConfigError(
            f"--correct-class should be a class of {dataset.name} ({some(dataset.classes, 10)}); found "
            f"{', '.join(map(repr, unknown))}"
        )
    try:
        rows = labelled_rows(dataset, HELD_OUT)
    except DataError as error:
        raise DataError(f"--correct-class fits to how often a class occurs in validation: {error}") from error
    numbers = tuple(dataset.classes.index(name) for name in names)
    labels = np.asarray(dataset.labels)[rows]
    shares = np.array([(labels == number).mean() for number in numbers])
    absent = [name for name, share in zip(names, shares, strict=True) if not share]
    if absent:
        raise ConfigError(
            f"--correct-class {absent[0]}: no validation example of {dataset.name} has that label, and the best "
            "constant would be minus infinity. Name a class that occurs there"
        )
    if np.isin(labels, numbers).all():
        raise ConfigError(
            f"--correct-class names every class of the validation examples of {dataset.name}: what is added to all of "
            "them means nothing. Leave one out"
        )
    return numbers, shares, rows


def log_odds(logits_NC: npt.NDArray[Any], classes: Sequence[int]) -> Floats:
    """``log p_c - log(sum of p_j over all j not in classes)`` of each of n classes, (N, n): all that a fit needs.

    Of one class that is its log-odds. A constant added to the logits of a row changes nothing.

    Raises DataError when the logits are not finite.

    >>> log_odds(np.log([[1.0, 2.0, 5.0]]), [1]).round(4).tolist() == [[round(float(np.log(2 / 6)), 4)]]
    True
    """
    if not np.isfinite(logits_NC).all():
        raise DataError("logits should be finite; some hold NaN or infinities")
    log_p = log_softmax(logits_NC)
    others = np.delete(log_p, list(classes), axis=1)
    return np.asarray(log_p[:, list(classes)] - np.logaddexp.reduce(others, axis=1)[:, None])


def fit_biases(log_odds_Nn: npt.NDArray[Any], shares_n: npt.NDArray[Any]) -> Floats:
    """The constants b (n,) to add to the logits of n classes that minimise the mean negative log-likelihood.

    With a the log-odds, ``p_c = exp(a_c + b_c) / (1 + sum_k exp(a_k + b_k))``. With y_c 1 where the label is c and 0
    elsewhere, the NLL of a row is ``log(1 + sum_k exp(a_k + b_k)) - sum_c y_c (a_c + b_c)``, and something that b
    does not change. Its mean has ``d NLL / d b_c = mean p_c - share_c``: at the minimum the mean probability of each
    class is its share, and nothing else about the labels matters. The Hessian is the mean of ``diag(p) - p p'``,
    positive definite: the minimum is unique. It exists where all shares, and what they leave to the other classes, are
    above 0.

    Newton steps, as long as each halves the gradient; else ``b_c += log(share_c / mean p_c)``, likewise for the others
    together (generalised iterative scaling, Darroch and Ratcliff 1972), which never raises the NLL, doubled while that
    falls. float64. Raises DataError where there is no minimum.
    """
    odds, shares = np.asarray(log_odds_Nn, dtype=np.float64), np.asarray(shares_n, dtype=np.float64)
    rest = 1.0 - float(shares.sum())
    if not (shares > 0).all() or rest <= 0:
        raise DataError(
            f"shares of classes should be above 0, and leave something for the others; found {shares.tolist()}: no "
            "finite constant is the best"
        )
    bias = np.zeros(odds.shape[1])
    log_p = _log_p(odds, bias)
    for _ in range(MOST_STEPS):
        gradient = _gradient(log_p, shares)
        if np.abs(gradient).max() <= TOLERANCE:
            return bias
        newton = bias + _newton(log_p, gradient)
        if np.isfinite(newton).all():
            there = _log_p(odds, newton)
            if np.abs(_gradient(there, shares)).max() <= np.abs(gradient).max() / 2:
                bias, log_p = newton, there
                continue
        bias = bias + _scaling(odds, bias, log_p, shares, rest)
        log_p = _log_p(odds, bias)
    raise DataError(
        f"the constants of {len(shares)} classes did not settle in {MOST_STEPS} steps: the mean probability is off its "
        f"share by {np.abs(gradient).max():.1e}"
    )


def _log_p(odds: Floats, bias: Floats) -> Floats:
    """Log-probabilities (N, n + 1) of the classes and, last, of all others."""
    return log_softmax(np.concatenate([odds + bias, np.zeros((len(odds), 1))], axis=1))


def _gradient(log_p: Floats, shares: Floats) -> Floats:
    return np.asarray(np.exp(log_p[:, :-1]).mean(axis=0) - shares)


def _newton(log_p: Floats, gradient: Floats) -> Floats:
    """The Newton step (n,); not finite where the second derivative has all but vanished."""
    p = np.exp(log_p[:, :-1])
    hessian = np.diag(p.mean(axis=0)) - p.T @ p / len(p)
    try:
        return np.asarray(-np.linalg.solve(hessian, gradient))
    except np.linalg.LinAlgError:
        return np.full_like(gradient, np.inf)


def _scaling(odds: Floats, bias: Floats, log_p: Floats, shares: Floats, rest: float) -> Floats:
    """A step (n,) that lowers the NLL from wherever it is."""
    means = np.logaddexp.reduce(log_p, axis=0) - np.log(len(log_p))
    wanted = np.log([*shares, rest]) - means
    step = wanted[:-1] - wanted[-1]

    def value(by: Floats) -> float:
        return float(-_log_p(odds, bias + by)[:, -1].mean() - shares @ (bias + by))

    reached = value(step)
    while (further := value(2 * step)) < reached:
        step, reached = 2 * step, further
    return np.asarray(step)


def corrected(predict: Predictor, classes: Sequence[int], bias_n: Floats) -> Predictor:
    """A predictor whose logits, float64, have ``bias_n`` added at ``classes``."""

    def added(inputs: Tensor) -> npt.NDArray[Any]:
        logits = predict(inputs).astype(np.float64)
        logits[:, list(classes)] += bias_n
        return logits

    return added
