"""The fits find the published laws in the published numbers, and in points drawn from published laws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headrace
from headrace.train.scaling.bounded import best_factors, span
from headrace.train.scaling.collect import read_table
from headrace.train.scaling.correlation import pearson, spearman
from headrace.train.scaling.fits import JOINT, POWER, SHIFTED, Law, fit
from headrace.train.scaling.student import student_quantile

TABLE = Path(headrace.__file__).parent / "train" / "scaling" / "published" / "simmim-swinv2.csv"
# Scaling Vision Transformers, section 2.2: fine-tuning and 10-shot error by TPUv3 core-days.
PUBLISHED = [{"a": 0.26, "d": 0.01, "b": 0.35, "c": 0.09}, {"a": 0.63, "d": 0.52, "b": 0.32, "c": 0.12}]


def test_the_published_runs_have_the_published_correlations() -> None:
    rows = read_table(TABLE)
    losses, accuracies = (np.array([getattr(row, name) for row in rows]) for name in ("validation_loss", "accuracy"))
    assert len(rows) == 63
    assert pearson(losses, accuracies) == pytest.approx(-0.786, abs=5e-4)
    assert spearman(losses, accuracies) == pytest.approx(-0.897, abs=5e-4)
    whole = np.array([row.samples in (1_281_167, 14_197_122) for row in rows])
    assert whole.sum() == 27
    assert pearson(losses[whole], accuracies[whole]) == pytest.approx(-0.954, abs=5e-4)


def test_loss_by_size_is_the_published_fit() -> None:
    rows = [row for row in read_table(TABLE) if row.name.endswith("IN-1k 500k")]
    found = fit(POWER, np.array([[row.parameters / 1e6] for row in rows]), np.array([r.validation_loss for r in rows]))
    assert [found.numbers[name] for name in "abc"] == pytest.approx([0.1213, 0.2247, 0.4138], abs=1e-4)
    assert found.rmse == pytest.approx(3.8e-4, abs=1e-5)
    assert all(i.low <= found.numbers[name] <= i.high for name, i in found.intervals.items())


@pytest.mark.parametrize("law", PUBLISHED)
def test_points_of_a_published_law_give_it_back(law: dict[str, float]) -> None:
    compute = np.logspace(-1, 4, 20)
    error = law["a"] * (compute + law["d"]) ** -law["b"] + law["c"]
    assert fit(SHIFTED, compute[:, None], error).numbers == pytest.approx(law, rel=1e-3)
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(20)
    found = fit(SHIFTED, compute[:, None], error * noise)
    assert found.interval_at(3e4) is not None
    assert found.interval_at(3e4).low < law["a"] * 3e4 ** -law["b"] + law["c"] < found.interval_at(3e4).high


def test_a_law_of_size_and_data_is_found_whatever_the_units() -> None:
    size, data = (axis.ravel() for axis in np.meshgrid(np.logspace(6, 9, 4), np.logspace(5, 8, 4)))
    loss = 1.69 + 406 * size**-0.34 + 410 * data**-0.28
    found = fit(JOINT, np.stack([size, data], axis=1), loss)
    assert found.numbers == pytest.approx({"a": 406, "e": 410, "c": 1.69, "b": 0.34, "f": 0.28}, rel=1e-3)
    assert found.at(1e9, 1e8) == pytest.approx(1.69 + 406 * 1e9**-0.34 + 410 * 1e8**-0.28, rel=1e-6)


@pytest.mark.parametrize("runs", [4, 5, 8])
def test_95_of_100_intervals_hold_the_next_size_however_few_the_runs(runs: int) -> None:
    rng = np.random.default_rng(runs)
    size, following = np.logspace(7.5, 9, runs), 2e9
    held, studies = 0, 100
    for _ in range(studies):
        found = fit(POWER, size[:, None], 0.4 + 2 * size**-0.2 + 1e-3 * rng.standard_normal(runs))
        interval = found.interval_at(following)
        held += interval.low <= 0.4 + 2 * following**-0.2 + 1e-3 * rng.standard_normal() <= interval.high
    # Two standard deviations of a draw from 95 %; a bootstrap of so few runs holds 69 to 83.
    assert held >= 0.9 * studies


@pytest.mark.parametrize("new_point", [True, False])
def test_ends_of_an_interval_are_those_of_a_slow_search(new_point: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = np.geomspace(0.2, 5, 7), np.array([3.0, 2.2, 1.8, 1.3, 1.2, 1.0, 1.1])
    limit = 0.2
    terms = np.array([x**-0.5, x**-1.5], np.float64).T[None]
    weights = np.array([[0.4, 0.1, 1.0]])
    low, high = span(terms, y, weights=weights, limit=limit, new_point=new_point)
    factors = rng.uniform(0, [2, 1, 1.5], (400_000, 3))
    spare = limit - ((y - factors[:, :2] @ terms[0].T - factors[:, 2:]) ** 2).sum(axis=1)
    said = (factors @ weights[0])[spare >= 0]
    reach = np.sqrt(spare[spare >= 0]) if new_point else 0.0
    assert len(said) > 1000
    assert low[0] == pytest.approx((said - reach).min(), abs=0.02)
    assert low[0] <= (said - reach).min()
    assert high[0] == pytest.approx((said + reach).max(), abs=0.02)
    assert high[0] >= (said + reach).max()


def test_intervals_of_two_searched_numbers_reach_to_the_end_of_their_ridge() -> None:
    x, noise = np.geomspace(1, 1e3, 14)[:, None], np.random.default_rng(1).standard_normal(44)[30:]
    found = fit(SHIFTED, x, 0.3 + 0.5 * (x[:, 0] + 0.5) ** -0.3 + 3e-3 * noise)
    known = found.profile
    ends = [(found.intervals[name].low / 1.3, found.intervals[name].high * 1.3) for name in SHIFTED.searched]
    ends[1] = (ends[1][0] / known.means[0], ends[1][1] / known.means[0])
    places = np.stack(np.meshgrid(*(np.geomspace(*both, 250) for both in ends)), axis=-1).reshape(-1, 2)
    allowed = places[(best_factors(SHIFTED.terms(known.x, places), known.y)[1] ** 2).sum(axis=1) <= known.limit]
    for column, name in zip((allowed * [1, known.means[0]]).T, SHIFTED.searched, strict=True):
        assert found.intervals[name].high == pytest.approx(column.max(), rel=0.03), name


@pytest.mark.parametrize("law", [POWER, SHIFTED])
@pytest.mark.parametrize(
    ("losses", "least"),
    [(lambda x: 2 * x**-0.3 + 0.4, 0.0), (lambda x: x**-0.3, 0.0), (lambda x: 0 * x, 0.0), (lambda x: -1 - x, 1.0)],
    ids=["perfect", "no constant", "zero", "below zero"],
)
def test_a_degenerate_study_has_no_false_fit_and_finite_intervals(law: Law, losses: Any, least: float) -> None:
    x = np.geomspace(1, 100, 6)
    found = fit(law, x[:, None], losses(x))
    assert found.rmse >= least - 1e-9, "losses below zero are not fitted by a law that is not"
    assert least or found.rmse < 1e-5
    for one in (*found.intervals.values(), found.interval_at(1e3)):
        assert -np.inf < one.low <= one.high < np.inf


def test_students_t_is_that_of_the_tables() -> None:
    told = [student_quantile(0.975, freedom) for freedom in (1, 2, 3, 10, 30)]
    assert told == pytest.approx([12.7062, 4.3027, 3.1824, 2.2281, 2.0423], abs=1e-4)


def test_what_the_points_do_not_determine_is_said() -> None:
    flat = fit(POWER, np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([1.0, 1.1, 1.2, 1.3]))
    assert flat.undetermined
    with pytest.raises(ValueError, match="3 numbers need as many points, got 2"):
        fit(POWER, np.array([[1.0], [2.0]]), np.array([1.0, 0.9]))
    with pytest.raises(ValueError, match="x is 3 at every point"):
        fit(POWER, np.full((4, 1), 3.0), np.arange(4.0))
    with pytest.raises(ValueError, match="finite, and x above zero"):
        fit(POWER, np.array([[0.0], [1.0], [2.0]]), np.arange(3.0))
