"""How much an answer with Gaussian noise can give away: differential privacy of one Gaussian mechanism, exactly.

A function whose value moves by at most Delta (L2) when one protected unit changes, released once with noise
N(0, sigma^2) in each coordinate, is (epsilon, delta)-private if and only if

    Phi(Delta / 2 sigma - epsilon sigma / Delta) - e^epsilon Phi(-Delta / 2 sigma - epsilon sigma / Delta) <= delta

(Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018, theorem 8; Phi is the normal
distribution). Answers with the same noise are one mechanism: Delta is that of all of them together. Only Delta / sigma
counts, called mu here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError

SIMPLEX = math.sqrt(2.0)
"""The largest L2 distance of two distributions: between two certain ones."""

_SWITCH = 6.0
_TERMS = 60


def delta_of(epsilon: float, sigma: float, sensitivity: float) -> float:
    """The smallest delta at which noise ``sigma`` is (``epsilon``, delta)-private; 0 below about 1e-308.

    Written with Mills' ratio M(x) = Phi(-x) / phi(x), for e^epsilon times the second density is the first:
    delta = Phi(u) - phi(u) M(-v), and Phi(u) = phi(u) M(-u). Nothing overflows, and the difference of two small tails
    is exact to about 1e-15 / mu of itself.
    """
    mu = _mu(sigma, sensitivity)
    if not epsilon >= 0:
        raise ConfigError(f"epsilon should be at least 0; found {epsilon}")
    if math.isinf(epsilon) or mu == 0:
        return 0.0
    u, v = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    density = math.exp(-u * u / 2) / math.sqrt(2 * math.pi) if abs(u) < 40 else 0.0
    head = density * _mills(-u) if u < 0 else 0.5 * math.erfc(-u / math.sqrt(2))
    return min(1.0, max(0.0, head - density * _mills(-v)))


def epsilon_of(sigma: float, delta: float, sensitivity: float) -> float:
    """The smallest epsilon at which noise ``sigma`` is (epsilon, ``delta``)-private, rounded up."""
    _check_delta(delta)
    mu = _mu(sigma, sensitivity)
    if delta_of(0.0, sigma, sensitivity) <= delta:
        return 0.0
    # Concentrated differential privacy (Bun and Steinke 2016, proposition 1.3) gives more than is needed.
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if delta_of(middle, sigma, sensitivity) <= delta else (middle, high)
    return high


def sigma_of(epsilon: float, delta: float, sensitivity: float) -> float:
    """The smallest noise that is (``epsilon``, ``delta``)-private, rounded up."""
    _check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise ConfigError(f"epsilon should be a number above 0; found {epsilon}")

    def enough(mu: float) -> bool:
        return delta_of(epsilon, 1.0, mu) <= delta

    low = high = 1.0
    while not enough(low):
        low /= 2
    while enough(high):
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if enough(middle) else (low, middle)
    _mu(1.0, sensitivity)
    return math.nextafter(sensitivity / low, math.inf)


def _mu(sigma: float, sensitivity: float) -> float:
    if not (0 < sigma < math.inf and 0 < sensitivity < math.inf):
        raise ConfigError(f"sigma and sensitivity should be numbers above 0; found {sigma} and {sensitivity}")
    return sensitivity / sigma


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta should lie between 0 and 1; found {delta}")


def _mills(x: float) -> float:
    """Phi(-x) / phi(x) for x >= 0: by erfc, and where that underflows, by Laplace's continued fraction."""
    if x < _SWITCH:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    tail = x
    for term in range(_TERMS, 0, -1):
        tail = x + term / tail
    return 1.0 / tail


@dataclass(frozen=True)
class Account:
    """What may be claimed of the mean of ``teachers`` distributions over ``rows`` rows, each coordinate with noise.

    ``disjoint``: the teachers were trained on disjoint data, so that one record moves one of them. ``seed``: the noise
    was made from this number, which voids the claim; None when it was drawn in secret.
    """

    teachers: int
    disjoint: bool
    rows: int
    sigma: float
    epsilon: float
    delta: float
    seed: int | None = None

    @classmethod
    def of(
        cls,
        *,
        teachers: int,
        disjoint: bool,
        rows: int,
        delta: float,
        epsilon: float | None = None,
        sigma: float | None = None,
        seed: int | None = None,
    ) -> Account:
        """The account for a wanted ``epsilon``, or for a given ``sigma``: one of the two."""
        if (epsilon is None) == (sigma is None):
            raise ConfigError("give either epsilon or sigma")
        reach = sensitivity(rows, teachers if disjoint else 1)
        if epsilon is None:
            epsilon = epsilon_of(float(sigma or 0.0), delta, reach)
        if sigma is None:
            sigma = sigma_of(epsilon, delta, reach)
        return cls(teachers, disjoint, rows, float(sigma), float(epsilon), float(delta), seed)

    @property
    def unit(self) -> str:
        """What is protected: one training record where teachers share none, else all teachers as a whole."""
        if self.disjoint and self.teachers > 1:
            return "one training record"
        return "the teacher as a whole" if self.teachers == 1 else "all teachers as a whole"

    @property
    def sensitivity(self) -> float:
        """L2, of all rows together, when one unit changes."""
        return sensitivity(self.rows, self.teachers if self.disjoint else 1)

    @property
    def claim(self) -> str:
        """The claim in a sentence, or that there is none."""
        size = f"epsilon = {_up(self.epsilon)}, delta = {self.delta:.3g}"
        if self.seed is not None:
            return (
                f"No privacy is claimed: the noise comes from the seed {self.seed}, so that anybody can take it off "
                f"again. Drawn in secret, noise of this size would give {size} for {self.unit}."
            )
        if self.disjoint and self.teachers > 1:
            return (
                f"Differential privacy for one training record (added, taken away or replaced): {size}. This rests on "
                f"the word of whoever made the cache that no record was used for two of the {self.teachers} teachers, "
                "and that none decided where another went."
            )
        whole = "the teacher" if self.teachers == 1 else f"the {self.teachers} teachers together"
        return (
            f"Differential privacy for {whole} as a whole: {size}. What is hidden, as far as that goes, is which "
            f"model answered, and with it any of its training data; no better figure can be claimed for one record."
        )

    @property
    def basis(self) -> str:
        """How the figures come about."""
        if self.teachers == 1:
            over, moved = "one answer of the teacher", "sqrt(2)"
        elif self.disjoint:
            over, moved = f"a mean over {self.teachers} teachers, of which one changes", f"sqrt(2) / {self.teachers}"
        else:
            over, moved = f"a mean over {self.teachers} teachers, all of which may change", "sqrt(2)"
        return (
            f"One Gaussian mechanism: {self.rows:,} rows, each {over}, so that a row moves by at most {moved} and all "
            f"of them together by {self.sensitivity:.6g} (L2); noise of standard deviation {self.sigma:.6g} in every "
            "coordinate; epsilon and delta by Balle and Wang (2018), theorem 8."
        )

    LIMITS = (
        "Not covered: the examples themselves (ids, digests, views and hard labels lie in the cache as they are), "
        "choices made by looking at the training data, and whatever else is given away of the same teachers: each "
        "further cache adds to what this one tells."
    )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: the figures, and the words."""
        return {
            "teachers": self.teachers,
            "disjoint": self.disjoint,
            "rows": self.rows,
            "sensitivity": self.sensitivity,
            "sigma": self.sigma,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "seed": self.seed,
            "claim": self.claim,
            "basis": self.basis,
            "limits": self.LIMITS,
        }


def sensitivity(rows: int, teachers: int) -> float:
    """How far the mean of ``teachers`` distributions moves in L2 over ``rows`` rows when one of them changes.

    >>> round(sensitivity(200, 10), 9)
    2.0
    """
    if rows < 1 or teachers < 1:
        raise ConfigError(f"rows and teachers should be at least 1; found {rows} and {teachers}")
    return math.sqrt(rows) * SIMPLEX / teachers


def _up(epsilon: float) -> str:
    """Four digits, never fewer than are owed.

    >>> _up(1.0), _up(9.99725), _up(1.00001)
    ('1', '9.998', '1.001')
    """
    digits = 3 - math.floor(math.log10(epsilon)) if epsilon > 0 else 0
    scale = 10.0 ** min(digits, 300)
    return f"{math.ceil(epsilon * scale * (1 - 1e-12)) / scale:.4g}"
