"""A URL names exactly the steps that saw its sample: against what real streams delivered."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Mixture, Segment, Source
from headrace.trace.find import Asked, find_samples
from headrace.trace.history import open_history
from headrace.trace.lookup import Opened, open_sources
from headrace.trace.occurrences import occurrence_tables
from headrace.trace.replaced import read_replacements
from headrace.trace.tally import count_samples, new_tally

BATCH = 12
Rows = list[tuple[int, int, str, str]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mixture, what of it is damaged, and the starts of a run: (first step, last step, world size)."""

    mixture: Mixture
    damaged: dict[str, list[int]]
    starts: list[tuple[int, int, int]]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Two or three sources, parts of some, segments of other weights and lanes, damage, kills and world sizes."""
    names = draw(st.sampled_from([("large", "small"), ("mid",), ("large", "mid", "small")]))
    lanes = draw(st.sampled_from([2, 4, 6]))
    all_lanes = [lanes]
    segments = []
    for number in range(draw(st.integers(0, 2))):
        all_lanes.append(draw(st.sampled_from([2, 4, 6])))
        weights = {names[-1]: float(draw(st.integers(0 if len(names) > 1 else 1, 3)))}
        segments.append(Segment(start=BATCH * (3 + 4 * number), weights=weights, lanes=all_lanes[-1]))
    sources = tuple(
        Source(
            name=name,
            url=name,
            weight=draw(st.sampled_from([0.5, 1.0, 2.0])),
            fraction=draw(st.sampled_from([1.0, 1.0, 0.8])),
            repeat=draw(st.sampled_from([0, 0, 1])) if number else 0,
            chunk_samples=draw(st.integers(1, 8)),
            shuffle_window=draw(st.sampled_from([0, 16, 64])),
        )
        for number, name in enumerate(names)
    )
    mixture = Mixture(
        seed=draw(st.integers(0, 3)), lanes=lanes, image_size=8, sources=sources, segments=tuple(segments),
        index_cache="none", decode_threads=1, io_threads=2, max_bad_fraction=1.0,
    )  # fmt: skip
    damaged = {name: draw(st.lists(st.integers(0, 25), max_size=2, unique=True)) for name in names}
    first, starts = 0, []
    for _ in range(draw(st.integers(1, 3))):
        last = min(first + draw(st.integers(2, 6)), 12)
        if last > first:
            starts.append((first, last, draw(st.sampled_from([1, 2]))))
        first = max(0, last - draw(st.integers(0, 2)))
    return Plan(mixture, damaged, starts)


def placed_in(folder: Path, plan: Plan, datasets: dict[str, str]) -> Mixture:
    """Return the mixture over copies of the datasets."""
    for name in plan.damaged:
        shutil.copytree(datasets[name], folder / name)
    sources = tuple(dataclasses.replace(source, url=str(folder / source.name)) for source in plan.mixture.sources)
    return dataclasses.replace(plan.mixture, sources=sources, quarantine=str(folder / "quarantine.jsonl"))


def done_by(
    folder: Path, plan: Plan, datasets: dict[str, str], run: Callable[..., Rows], damage: Callable[..., None]
) -> Rows:
    """Do the run with its kills, and return what its steps saw in the end."""
    mixture = placed_in(folder, plan, datasets)
    for name, numbers in plan.damaged.items():
        damage(str(folder / name), numbers)
    seen: Rows = []
    for first, last, world_size in plan.starts:
        rows = run(mixture, folder / "run", first=first, last=last, world_size=world_size)
        seen = [row for row in seen if row[0] <= first] + rows
    return seen


def audited(folder: Path, asked: Asked, *, last: int = 0) -> tuple[list[dict[str, Any]], Any]:
    """Return the rows of an audit, and the opened history."""
    history = open_history(str(folder / "run"))
    opened = open_sources(history)
    replacements = read_replacements(opened)
    matches = find_samples(opened, asked)
    tables = occurrence_tables(opened, matches, replacements, last=last or history.done)
    return [row for table in tables for row in table.to_pylist()], opened


@settings(max_examples=12)
@given(plan=plans())
def test_a_url_names_the_steps_of_a_replay_at_every_world_size_over_kills_segments_parts_and_damage(
    plan: Plan, datasets: dict[str, str], run: Callable[..., Rows], damage: Callable[..., None]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen = done_by(folder, plan, datasets, run, damage)
        history = open_history(str(folder / "run"))
        opened = open_sources(history)
        every = [
            row["url"]
            for number, source in enumerate(opened.sources)
            for row in opened.rows(number, np.arange(int(source.starts[-1]), dtype=np.int64))
        ]
        rows, _ = audited(folder, Asked({"url": every}))
        found = sorted((row["step"], row["position"], row["source"], row["key"]) for row in rows if _is_seen(row))
        assert found == sorted(row for row in seen if row[0] <= history.done)
        planned = {row["position"]: row for row in rows if row["status"] == "replaced"}
        by_position = {row[1]: row for row in seen}
        assert all(by_position[place][3] == row["other_key"] != row["key"] for place, row in planned.items())
        assert {row["status"] for row in rows} <= {"seen", "replaced", "not seen", "not used"}
        _check_tally(opened, seen, history.done)


def _is_seen(row: dict[str, Any]) -> bool:
    return bool(row["status"] == "seen")


def _check_tally(opened: Any, seen: Sequence[tuple[int, int, str, str]], last: int) -> None:
    replacements = read_replacements(opened)
    tally = new_tally(opened, replacements, last=last)
    for counted in count_samples(opened, replacements, last=last, texts=True):
        tally.add(opened.sources[counted.source].config.name, counted)
        for row in counted.seen.to_pylist():
            mine = [one for one in seen if one[2:] == (row["source"], row["key"])]
            assert row["times"] == len(mine)
    assert sum(source.times for source in tally.sources.values()) == len(seen)
    assert sum(int(row["times"]) for row in tally.hosts(100)) == len(seen)
    assert sum(source.num_seen for source in tally.sources.values()) == len({row[2:] for row in seen})


def test_a_fault_that_went_by_leaves_its_line_and_replaces_nothing(
    mixture: Mixture, tmp_path: Path, run: Callable[..., Rows], damage: Callable[..., None], datasets: dict[str, str]
) -> None:
    plan = Plan(mixture, {"large": [0, 5, 9], "small": []}, [(0, 6, 2)])
    seen = done_by(tmp_path, plan, datasets, run, damage)
    quarantine = tmp_path / "quarantine.jsonl.0"
    with open_first(quarantine) as line:
        step = line["position"] // BATCH + 1
    other = next(row for row in seen if row[0] == step and row[1] != line["position"])
    # What a rank wrote of a step that it did once more, and then the sample was whole.
    gone = {**line, "position": other[1], "source": other[2], "key": other[3], "replaced_by": line["key"]}
    with quarantine.open("a") as file:
        file.write(json.dumps(gone) + "\n")
    rows, opened = audited(tmp_path, Asked({"key": [other[3]]}))
    mine = [row for row in rows if row["source"] == other[2]]
    assert [row["status"] for row in mine if row["position"] == other[1]] == ["seen"]
    assert read_replacements(opened).not_told(6) == {}


@pytest.mark.parametrize("last", [True, False])
def test_where_two_starts_tell_different_stories_the_digest_of_the_step_decides(
    mixture: Mixture,
    tmp_path: Path,
    run: Callable[..., Rows],
    damage: Callable[..., None],
    datasets: dict[str, str],
    last: bool,
) -> None:
    plan = Plan(mixture, {"large": [0, 5, 9], "small": []}, [(0, 6, 1)])
    seen = {row[1]: row for row in done_by(tmp_path, plan, datasets, run, damage)}
    quarantine = tmp_path / "quarantine.jsonl"
    with open_first(quarantine) as line:
        place = line["position"]
    # At another start the replacement was out of order too, and the one behind it was given.
    other = [{**line, "replaced_by": "00000000001"}, {**line, "key": seen[place][3], "replaced_by": "00000000001"}]
    text, more = quarantine.read_text(), "".join(json.dumps(one) + "\n" for one in other)
    quarantine.write_text(text + more if last else more + text)
    rows, opened = audited(tmp_path, Asked({"key": [line["key"]]}))
    (row,) = [row for row in rows if row["position"] == place]
    assert (row["status"], row["other_key"]) == ("replaced", seen[place][3])
    assert read_replacements(opened).not_told(6) == {}
    # With none of the stories the step has its digest: nothing is claimed.
    quarantine.write_text(more)
    rows, opened = audited(tmp_path, Asked({"key": [line["key"]]}))
    (row,) = [row for row in rows if row["position"] == place]
    assert row["status"] == "not known"
    assert row["step"] in read_replacements(opened).not_told(6)


def test_the_stories_of_many_steps_are_looked_up_together(
    mixture: Mixture,
    tmp_path: Path,
    run: Callable[..., Rows],
    damage: Callable[..., None],
    datasets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Plan(mixture, {"large": [*range(0, 40, 5)], "small": [3]}, [(0, 8, 1)])
    done_by(tmp_path, plan, datasets, run, damage)
    opened = open_sources(open_history(str(tmp_path / "run")))
    one_by_one, together = read_replacements(opened), read_replacements(opened)
    expected = [one_by_one.of_step(step) for step in range(1, 9)]
    assert sum(map(bool, expected)) > 3
    looked, keys = [], Opened.keys

    def counted(self: Opened, *of: Any) -> list[str]:
        looked.append(1)
        return keys(self, *of)

    monkeypatch.setattr(Opened, "keys", counted)
    assert together.not_told(8) == {}
    assert [together.of_step(step) for step in range(1, 9)] == expected
    assert len(looked) == 2  # what is planned, and what is given instead


class open_first:
    """The first line of a file, as JSON."""

    def __init__(self, path: Path) -> None:
        self.line: dict[str, Any] = json.loads(path.read_text().splitlines()[0])

    def __enter__(self) -> dict[str, Any]:
        return self.line

    def __exit__(self, *_: object) -> None:
        return None
