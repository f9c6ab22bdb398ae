"""A curve counts exactly what the same step would keep with another threshold."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import config_to_dict
from headrace.curation.job import Job
from headrace.curation.ledger import StepSummary, latest_decision
from headrace.curation.recipe import Recipe
from headrace.curation.report.counts.curves import SIDES, Curves
from headrace.curation.report.gather import gather_job
from headrace.curation.report.sketch import Scale
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.select.steps.rule import Rule
from headrace.shards.units import EngineConfig

OPERATORS = {"at least": np.greater_equal, "at most": np.less_equal, "less than": np.less, "more than": np.greater}
values = st.one_of(st.just(float("nan")), st.integers(-3, 3).map(float), st.floats(-5, 5, width=32))


@given(st.lists(values, min_size=1, max_size=60), st.sampled_from(SIDES), st.integers(-2, 2))
def test_every_point_is_the_count_of_a_loop(drawn: list[float], side: str, threshold: int) -> None:
    numbers = np.array(drawn)
    passes = OPERATORS[side](np.nan_to_num(numbers, nan=np.inf if "l" not in side else np.nan), threshold)
    passes &= np.isfinite(numbers)
    steps = np.where(passes, 1, 0)
    cut = Rule(name="r", keep="true", value="x", threshold=float(threshold))
    summary = StepSummary(
        name="r",
        step="rule",
        settings=config_to_dict(cut),
        rows_in=len(drawn),
        dropped={},
        rows_out=int(passes.sum()),
        threshold=float(threshold),
    )
    curves = Curves.of([summary], {"x": Scale(-5.0, 5.0)})
    for part in np.array_split(np.arange(len(drawn)), 3):
        curves.curves[0].add(numbers[part], steps[part], 1)
    for found in curves.as_dicts():
        compare = OPERATORS[found["keeps"]]
        assert found["points"] == [
            [x, int(compare(numbers, x).sum()), int((compare(numbers, x) & passes).sum())]
            for x, _, _ in found["points"]
        ]
        (now,) = (point for point in found["points"] if point[0] == threshold)
        assert now[1] == passes.sum()
        assert found["without_number"] == np.isnan(numbers).sum()


def test_another_threshold_keeps_what_select_then_keeps(make_job: Callable[..., Recipe]) -> None:
    job = Job(make_job().job)
    folders = latest_decision(job).annotation_folders()
    plan = Selection(steps=(), placement=Placement(seed=0, shuffle_window=2, samples_per_shard=100))

    def kept(*limits: float) -> int:
        words, score = limits
        steps = (
            Rule(name="wide", keep=f"image_width >= {words}", value="image_width", threshold=words),
            Rule(name="score", keep=f"clip_score > {score}", value="clip_score", threshold=score),
        )
        inline = EngineConfig(executor="inline")
        return select_rows(find_inputs(job, folders), replace(plan, steps=steps), limits=Limits(), engine=inline).kept

    assert kept(90, 0.3) > 0
    curves = {curve["step"]: curve for curve in gather_job(latest_decision(job)).curves.as_dicts()}
    assert curves["wide"]["exact"]
    assert curves["score"]["exact"]
    for threshold, left, _ in curves["score"]["points"][5::30]:
        side = 0 if curves["score"]["keeps"] == "more than" else 1e-9
        assert kept(90, threshold - side) == left
    for threshold, _, both in [point for point in curves["wide"]["points"] if point[0] > 90][1::4][:3]:
        assert kept(threshold, 0.3) == both
