"""The account of Gaussian noise, held against the integral over the privacy loss and against the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.privacy import Account, delta_of, epsilon_of, sensitivity, sigma_of

MUS = st.floats(-3, 4).map(lambda power: 10.0**power)
DELTAS = st.floats(-14, -1).map(lambda power: 10.0**power)


def hockey_stick(epsilon: float, sigma: float, reach: float) -> float:
    """delta by its definition: the integral of max(0, p - e^epsilon q), p = N(reach, sigma^2), q = N(0, sigma^2).

    By the trapezoid rule from where p begins to exceed e^epsilon q, relative to the density of p.
    """
    start = sigma**2 * epsilon / reach + reach / 2
    x = np.linspace(start, max(start, reach) + 14 * sigma, 400_001)
    log_p = -((x - reach) ** 2) / (2 * sigma**2)
    loss = (2 * reach * x - reach**2) / (2 * sigma**2)  # log p - log q
    integrand = np.exp(log_p) * -np.expm1(np.minimum(epsilon - loss, 0.0))
    return float(np.trapezoid(integrand, x) / (sigma * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("reach", [1.0, 5.0])
def test_delta_is_the_integral_over_the_privacy_loss(epsilon: float, sigma: float, reach: float) -> None:
    expected = hockey_stick(epsilon, sigma, reach)
    assert delta_of(epsilon, sigma, reach) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_tails_far_below_what_erfc_holds() -> None:
    # By hand: phi(u) (M(-u) - M(-v)), with Mills' ratio M(x) about 1/x - 1/x^3 + 3/x^5 - 15/x^7.
    mu, epsilon = 0.1, 3.5
    u, v = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    mills = [1 / x - 1 / x**3 + 3 / x**5 - 15 / x**7 for x in (-u, -v)]
    expected = math.exp(-u * u / 2) / math.sqrt(2 * math.pi) * (mills[0] - mills[1])
    assert 0 < expected < 1e-250
    assert delta_of(epsilon, 1.0, mu) == pytest.approx(expected, rel=1e-5)
    assert delta_of(1e6, 1.0, 1.0) == 0.0 and delta_of(0.0, 1e-9, 1.0) == 1.0
    assert math.isfinite(epsilon_of(1e-9, 1e-5, 1.0))


@given(MUS, DELTAS)
def test_epsilon_and_sigma_are_inverse_to_each_other(mu: float, delta: float) -> None:
    epsilon = epsilon_of(1.0, delta, mu)
    assert delta_of(epsilon, 1.0, mu) <= delta
    if epsilon > 1e-6:
        assert delta_of(epsilon * (1 - 1e-5), 1.0, mu) > delta  # no smaller one would do
        assert sigma_of(epsilon, delta, mu) == pytest.approx(1.0, rel=1e-6)


@given(MUS, DELTAS, st.floats(1.01, 10))
def test_more_noise_more_teachers_or_more_delta_never_cost(mu: float, delta: float, more: float) -> None:
    epsilon = epsilon_of(1.0, delta, mu)
    assert epsilon_of(more, delta, mu) <= epsilon
    assert epsilon_of(1.0, delta, mu * more) >= epsilon
    assert epsilon_of(1.0, min(0.5, delta * more), mu) <= epsilon
    assert epsilon_of(more, delta, mu * more) == pytest.approx(epsilon, rel=1e-9, abs=1e-9)  # only the quotient counts


def test_sigma_of_the_classic_mechanism_is_never_needed() -> None:
    """Dwork and Roth 2014, theorem A.1: sigma = sqrt(2 log(1.25 / delta)) / epsilon is enough for epsilon below 1."""
    for epsilon in (0.1, 0.5, 0.9):
        for delta in (1e-3, 1e-5, 1e-9):
            assert sigma_of(epsilon, delta, 1.0) < math.sqrt(2 * math.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize(
    ("sigma", "delta", "reach", "expected"),
    [
        # dp_accounting 0.6.0 (Google), gaussian_mechanism.get_epsilon_gaussian(sigma / reach, delta)
        (1.0, 1e-5, 1.0, 4.377178095681137),
        (5.0, 1e-10, 1.0, 1.1816013082342454),
        (0.3, 1e-5, 1.0, 19.130767834361926),
        (0.05, 1e-5, 141.0, 3988225.9927943298),
    ],
)
def test_figures_of_another_accountant(sigma: float, delta: float, reach: float, expected: float) -> None:
    assert epsilon_of(sigma, delta, reach) == pytest.approx(expected, rel=1e-12)


def test_sigmas_of_another_accountant() -> None:
    # dp_accounting 0.6.0, get_sigma_gaussian
    for epsilon, delta, expected in [
        (1.0, 1e-5, 3.7306316348159374),
        (10.0, 1e-5, 0.4998886197090323),
        (0.1, 1e-6, 36.304690426195194),
    ]:
        assert sigma_of(epsilon, delta, 1.0) == pytest.approx(expected, rel=1e-11)


def test_concentrated_privacy_is_a_bound_from_above() -> None:
    """Bun and Steinke 2016: mu^2/2-zCDP, so epsilon is at most mu^2/2 + mu sqrt(2 log(1/delta))."""
    for mu in (0.01, 0.3, 1.0, 8.0, 200.0):
        found = epsilon_of(1.0, 1e-5, mu)
        assert found < mu * mu / 2 + mu * math.sqrt(2 * math.log(1e5))
        assert mu < 8 or found > mu * mu / 2  # most of the privacy loss lies about its mean


def test_rows_with_the_same_noise_are_one_answer() -> None:
    """A row's privacy loss is normal with mean r^2/2 and variance r^2 (r = distance / sigma); so are sums of them."""
    rows, teachers, sigma, delta = 50, 4, 0.9, 1e-5
    r = math.sqrt(2) / teachers / sigma
    mean, deviation = rows * r * r / 2, math.sqrt(rows) * r
    epsilon = epsilon_of(sigma, delta, sensitivity(rows, teachers))
    loss = mean + deviation * np.linspace(-12, 12, 400_001)
    density = np.exp(-(((loss - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    found = np.trapezoid(density * np.maximum(0.0, -np.expm1(np.minimum(epsilon - loss, 0.0))), loss)
    assert float(found) == pytest.approx(delta, rel=1e-6)


def test_no_two_distributions_lie_farther_apart_than_the_sensitivity_says() -> None:
    random = np.random.default_rng(0)
    teachers = random.dirichlet(np.full(5, 0.05), size=(7, 30))  # (teachers, rows, classes), nearly certain
    changed = teachers.copy()
    changed[3] = np.eye(5)[random.integers(5, size=30)]
    moved = float(np.linalg.norm(teachers.mean(0) - changed.mean(0)))
    assert 0.5 * sensitivity(30, 7) < moved <= sensitivity(30, 7)
    one, other = np.eye(5)[np.zeros(30, int)], np.eye(5)[np.ones(30, int)]
    assert float(np.linalg.norm(one - other)) == pytest.approx(sensitivity(30, 1))


def test_what_is_claimed() -> None:
    known = {"rows": 200, "delta": 1e-5}
    shared = Account.of(teachers=10, disjoint=True, epsilon=10.0, **known)
    assert shared.sensitivity == pytest.approx(2.0) and shared.unit == "one training record"
    assert "epsilon = 10, delta = 1e-05" in shared.claim and "word of whoever made" in shared.claim
    whole = Account.of(teachers=10, disjoint=False, epsilon=10.0, **known)
    assert whole.sensitivity == pytest.approx(20.0) and whole.sigma == pytest.approx(10 * shared.sigma)
    assert whole.unit == "all teachers as a whole" and "training record" not in whole.claim
    one = Account.of(teachers=1, disjoint=False, sigma=whole.sigma, **known)
    assert one.epsilon == pytest.approx(10.0) and one.unit == "the teacher as a whole"
    # A teacher alone has no disjoint data to claim.
    assert Account.of(teachers=1, disjoint=True, epsilon=1.0, **known).unit == "the teacher as a whole"
    seeded = Account.of(teachers=10, disjoint=True, epsilon=10.0, seed=7, **known)
    assert seeded.claim.startswith("No privacy is claimed") and "seed 7" in seeded.claim


def test_the_words_never_say_less_than_is_owed() -> None:
    account = Account.of(teachers=10, disjoint=True, rows=200, delta=1e-5, sigma=1.0)
    said = float(account.claim.partition("epsilon = ")[2].partition(",")[0])
    assert account.epsilon <= said <= account.epsilon * 1.001


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: epsilon_of(0.0, 1e-5, 1.0), "sigma"),
        (lambda: epsilon_of(1.0, 0.0, 1.0), "delta"),
        (lambda: epsilon_of(1.0, math.nan, 1.0), "delta"),
        (lambda: sigma_of(0.0, 1e-5, 1.0), "epsilon"),
        (lambda: sigma_of(math.inf, 1e-5, 1.0), "epsilon"),
        (lambda: sigma_of(1.0, 1e-5, math.inf), "sensitivity"),
        (lambda: delta_of(-1.0, 1.0, 1.0), "epsilon"),
        (lambda: sensitivity(0, 1), "rows"),
        (lambda: Account.of(teachers=1, disjoint=False, rows=1, delta=1e-5), "either"),
    ],
)
def test_figures_that_mean_nothing(call: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()  # type: ignore[operator]
