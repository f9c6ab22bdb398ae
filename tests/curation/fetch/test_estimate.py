"""What a fetch will take is said with what that stands on."""

from pathlib import Path

import pytest

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.estimate import Measured, estimate, measure, readable_bytes, readable_hours
from headrace.curation.job import Job
from headrace.shards.commit import commit
from headrace.shards.units import EngineConfig


def test_an_estimate_names_its_assumptions() -> None:
    text = estimate(1_000_000, FetchConfig(concurrency=100), EngineConfig(workers=10), None)
    assert text == (
        "about 78.0 GB and 33.3 minutes: 65% of the links give an image, each 120 kB (an assumption); "
        "a link takes 2 s (an assumption), 10 processes of 100 links at a time"
    )
    text = estimate(1000, FetchConfig(resize="border"), EngineConfig(executor="inline"), None)
    assert "less after resizing" in text
    assert "1 process of 64 links" in text


def test_finished_shards_are_measured(tmp_path: Path) -> None:
    job = Job(str(tmp_path))
    assert measure(job) is None
    commit(job.raw, "00000", {"count": 100, "successes": 40, "tar": {"bytes": 4_000_000}})
    assert measure(job) == Measured(0.4, 100_000)
    text = estimate(1000, FetchConfig(), EngineConfig(), measure(job))
    assert text.startswith("about 40.0 MB and ")
    assert "40% of the links give an image, each 100 kB (as in the finished shards)" in text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (250e9, "250 GB"), (3e15, "3.0 PB")]
)
def test_bytes_are_readable(count: float, text: str) -> None:
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("hours", "text"), [(0.001, "4 seconds"), (0.5, "30.0 minutes"), (30, "30.0 hours"), (96, "4.0 days")]
)
def test_hours_are_readable(hours: float, text: str) -> None:
    assert readable_hours(hours) == text
