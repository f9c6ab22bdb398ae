"""Promises of the records of retries: a damaged one is one line that names it."""

from pathlib import Path

import pytest

from headrace.curation.fetch.retry import generations
from headrace.curation.job import Job


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1, "first_shard": "a", "samples_per_shard": 2}'])
def test_a_damaged_record_of_a_retry_is_named(tmp_path: Path, text: str) -> None:
    place = tmp_path / "input" / "retries" / "00000.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    with pytest.raises(ValueError, match=r"retries/00000\.json: damaged"):
        generations(Job(str(tmp_path)))


def test_a_whole_record_is_read_back(tmp_path: Path) -> None:
    place = tmp_path / "input" / "retries" / "00000.json"
    place.parent.mkdir(parents=True)
    place.write_text('{"rows": 5, "first_shard": 3, "samples_per_shard": 2}')
    (found,) = generations(Job(str(tmp_path)))
    assert (found.rows.num_rows, found.first_shard, found.num_shards) == (5, 3, 3)
