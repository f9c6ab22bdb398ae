"""The segments of a job's list: which raw shards hold rows of the list, as `input/plan.json` says.

A segment is a set of inputs that was planned at one time. Its raw shards have consecutive numbers; those between two
segments belong to retries. A plan of before 2026-12 has one segment, which begins at shard 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace import files, urlpath
from headrace.curation.job import Job
from headrace.curation.raw.record import read_json

PLAN_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """Where the rows of one segment are."""

    first_shard: int
    num_rows: int
    samples_per_shard: int

    @property
    def num_shards(self) -> int:
        """Number of its raw shards."""
        return -(-self.num_rows // self.samples_per_shard)

    @property
    def names(self) -> list[str]:
        """Names of its raw shards."""
        return [f"{self.first_shard + number:05d}" for number in range(self.num_shards)]


def plan_url(job_url: str) -> str:
    """Return where a job's plan is."""
    return urlpath.join(job_url, "input", "plan.json")


def read_segments(job: Job) -> tuple[Segment, ...]:
    """Return the segments planned so far; none of a job without a list. Raises ValueError if the plan is damaged."""
    place = plan_url(job.url)
    if not files.exists(place):
        return ()  # raw shards of others, or of another program
    return segments_of(read_json(place), place)


def segments_of(plan: Mapping[str, Any], place: str) -> tuple[Segment, ...]:
    """Return the segments of a plan. Raises ValueError that names `place` if it is damaged."""
    try:
        size = plan["samples_per_shard"]
        if plan.get("schema", 1) not in (1, PLAN_SCHEMA):
            raise ValueError(f"plan of schema {plan['schema']}, this headrace reads schemas 1 and {PLAN_SCHEMA}")
        if "schema" not in plan:
            found = [Segment(0, _total(plan["rows"]), size)]
        else:
            found = [
                Segment(item["first_shard"], _total([file["rows"] for file in item["files"]]), size)
                for item in plan["segments"]
            ]
        _check(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: damaged: {error!r}; restore it, or give the list a new job folder") from error
    return tuple(found)


def _total(rows: Sequence[int]) -> int:
    if not all(type(count) is int and count >= 0 for count in rows):
        raise ValueError("rows are no counts")
    return sum(rows)


def _check(segments: Sequence[Segment]) -> None:
    end = 0
    for segment in segments:
        if type(segment.samples_per_shard) is not int or segment.samples_per_shard < 1:
            raise ValueError("samples_per_shard is no count")
        if type(segment.first_shard) is not int or segment.first_shard < end:
            raise ValueError("the raw shards of two segments overlap")
        end = segment.first_shard + segment.num_shards


def list_shards(segments: Sequence[Segment]) -> frozenset[str]:
    """Return the names of the raw shards that hold the list; all others are those of retries."""
    return frozenset(name for segment in segments for name in segment.names)
