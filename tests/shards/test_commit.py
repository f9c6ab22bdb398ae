"""Commit records: one winner, sorted names, and no name that leaves the folder."""

import multiprocessing
from pathlib import Path

import pytest

from headrace.shards.commit import commit, committed, is_committed, read_commit


def _race_count(folder: str, start: str, number: int, results: "multiprocessing.Queue[int]") -> None:
    while not Path(start).exists():
        pass
    results.put(sum(commit(folder, f"{unit:05d}", {"writer": number}) for unit in range(50)))


def test_of_two_processes_one_commits_each_unit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    start = tmp_path / "start"
    racers = [
        context.Process(target=_race_count, args=(str(tmp_path), str(start), number, results)) for number in range(2)
    ]
    for racer in racers:
        racer.start()
    start.touch()
    won = [results.get(timeout=200) for _ in racers]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sum(won) == 50
    writers = [read_commit(str(tmp_path), name)["writer"] for name in committed(str(tmp_path))]
    assert len(writers) == 50
    assert sorted(won) == sorted(writers.count(number) for number in range(2))


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_the_first_record_stays(tmp_path: Path, scheme: str) -> None:
    folder = f"{scheme}{tmp_path}"
    assert committed(folder) == []
    assert not is_committed(folder, "b")
    assert commit(folder, "b", {"n": 1})
    assert not commit(folder, "b", {"n": 2})
    assert commit(folder, "a", {"n": 3})
    assert read_commit(folder, "b") == {"n": 1}
    assert committed(folder) == ["a", "b"]
    assert is_committed(folder, "b")


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b", "a\0"])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be made of"):
        commit(str(tmp_path), name, {})


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    commit(str(tmp_path), "a", {})
    (tmp_path / "commits" / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: not a commit record"):
        read_commit(str(tmp_path), "a")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "num_samples must be a whole number, got no such field"),
        ({"num_samples": None}, "num_samples must be a whole number, got None"),
        ({"num_samples": True}, "num_samples must be a whole number, got True"),
        ({"num_samples": 1, "sha256": 5}, "sha256 must be text, got 5"),
        ({"num_samples": 1, "sha256": ["\x1b[31m"]}, r"sha256 must be text, got \['"),
    ],
)
def test_a_record_that_lacks_what_is_needed_is_named(tmp_path: Path, record: dict[str, object], message: str) -> None:
    commit(str(tmp_path), "a", record)
    with pytest.raises(ValueError, match=rf"a\.json: damaged commit record: {message}"):
        read_commit(str(tmp_path), "a", fields={"num_samples": int, "sha256": str})
