"""Promises of merged captions: of random groups, step after step, no distinct caption is lost and none invented."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from select_jobs import ledger, make_row, run, write_job

from headrace.config import build_config
from headrace.curation.captions import caption_code
from headrace.curation.ledger import digest_of
from headrace.curation.select import run as run_module
from headrace.curation.select import shuffle
from headrace.curation.select.captions import create_captions, hand_over, merge_captions
from headrace.curation.select.database import Limits, insert
from headrace.curation.select.load import CAPTION_CODE
from headrace.curation.select.step import Bench
from headrace.curation.select.steps import STEPS, check_steps
from headrace.curation.select.steps.exact_duplicates import ExactDuplicates
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.select.steps.rule import Rule
from headrace.curation.select.steps.unsafe import Unsafe

TEXTS = (None, "a dog", "A  DOG", "a cat", "ein Hund", "\uff41 cat", "stra\u00dfe", "STRASSE", "bird")
Lists = dict[int, list[bytes]]
MANY = 1000


def _held(connection: duckdb.DuckDBPyConnection, texts: list[str | None], row: int) -> list[bytes]:
    """Return the codes of what the tables say a row holds."""
    first = connection.execute("SELECT source FROM captions WHERE __row = ?", [row]).fetchall()
    more = connection.execute("SELECT source FROM merged WHERE __row = ? ORDER BY place", [row]).fetchall()
    sources = [first[0][0] if first else row, *(source for (source,) in more)]
    return [caption_code(text) for source in sources if (text := texts[source]) is not None]


def _show(connection: duckdb.DuckDBPyConnection, texts: list[str | None]) -> None:
    """Show the rows as a step sees them: the code of a row is that of the caption that stands first."""
    codes = [None if text is None else caption_code(text) for text in texts]
    insert(connection, "stored", pa.table({"__row": range(len(texts)), "code": pa.array(codes, pa.binary())}))
    connection.execute(
        f"""
        CREATE VIEW here AS SELECT mine.__row, stored.code AS {CAPTION_CODE}
        FROM (SELECT stored.__row, coalesce(captions.source, stored.__row) AS source
              FROM stored LEFT JOIN captions USING (__row)) AS mine
        JOIN stored ON stored.__row = mine.source
        """
    )


def _step(connection: duckdb.DuckDBPyConnection, groups: list[list[int]], most: int) -> dict[str, int]:
    rows = [(group[0], member, place) for group in groups if len(group) > 1 for place, member in enumerate(group)]
    kept, members, places = zip(*rows, strict=True) if rows else ((), (), ())
    table = {"__row": pa.array(kept, pa.int64()), "member": pa.array(members, pa.int64())}
    insert(connection, "caption_members", pa.table({**table, "place": pa.array(places, pa.int64())}))
    bench = Bench(connection, Limits(), len(rows), len(rows), {})
    details = merge_captions(bench, most)
    hand_over(connection)
    return details


def _choose(connection: duckdb.DuckDBPyConnection, chosen: dict[int, int]) -> None:
    """Let rows take the caption of another, as `longest` does."""
    table = {"__row": pa.array(chosen.keys(), pa.int64()), "source": pa.array(chosen.values(), pa.int64())}
    insert(connection, "captions_taken", pa.table(table))
    hand_over(connection)


def _merged(lists: list[list[bytes]]) -> list[bytes]:
    return list(dict.fromkeys(code for codes in lists for code in codes))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_distinct_caption_is_lost_or_invented(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12))
    most = data.draw(st.sampled_from([2, 3, MANY]))
    held: Lists = {row: [] if text is None else [caption_code(text)] for row, text in enumerate(texts)}
    with duckdb.connect() as connection:
        create_captions(connection)
        _show(connection, texts)
        for _ in range(data.draw(st.integers(1, 3))):
            order = data.draw(st.permutations(sorted(held)))
            labels = data.draw(st.lists(st.integers(0, 3), min_size=len(order), max_size=len(order)))
            groups = [[row for row, of in zip(order, labels, strict=True) if of == label] for label in range(4)]
            groups = [group for group in groups if group]
            whole = {group[0]: _merged([held[row] for row in group]) for group in groups}
            details = _step(connection, groups, most)
            held = {row: codes[:most] for row, codes in whole.items()}
            assert {row: _held(connection, texts, row) for row in held} == held
            assert details["captions_cut"] == sum(max(0, len(codes) - most) for codes in whole.values())
            # A step that chooses takes all that the other row holds.
            rows = data.draw(st.permutations(sorted(held)))
            chosen = {rows[0]: rows[-1]} if len(rows) > 1 and held[rows[-1]] else {}
            _choose(connection, chosen)
            held |= {row: held[source] for row, source in chosen.items()}
            assert {row: _held(connection, texts, row) for row in held} == held


def test_settings_that_make_no_sense_are_refused_and_the_idle_ones_change_no_ledger() -> None:
    with pytest.raises(ValueError, match="max_captions must be 2 to 1000, got 1"):
        NearDuplicates(captions="merge", max_captions=1)
    with pytest.raises(ValueError, match="put it before 'near_duplicates', which merges them"):
        check_steps([NearDuplicates(captions="merge"), Unsafe()])
    check_steps([Unsafe(), NearDuplicates(captions="merge"), Unsafe(name="images", text_threshold=None)])
    for step in (ExactDuplicates(), NearDuplicates()):
        assert "max_captions" not in {**step.decides_by(), **step.settings()}
    assert ExactDuplicates(captions="merge").decides_by()["max_captions"] == 16


@pytest.mark.parametrize("step", ["exact_duplicates", "near_duplicates", "embedding_duplicates"])
def test_a_number_of_captions_without_merging_them_is_refused_in_one_line(step: str) -> None:
    pairs: dict[str, object] = {"step": step, "name": "mine"}
    pairs |= {"embedding": "clip_embedding", "threshold": 0.9} if step == "embedding_duplicates" else {}
    message = r"step 'mine': max_captions is 8 and captions is fill, .*no effect; say captions: merge, or leave"
    with pytest.raises(ValueError, match=message) as caught:
        build_config(STEPS[step], {**pairs, "max_captions": 8})
    assert "\n" not in str(caught.value)
    # As recipe.yaml of a job has it, every key written out: the same recipe, of the same digest.
    written = build_config(STEPS[step], {**pairs, "captions": "fill", "max_captions": 16})
    assert written == build_config(STEPS[step], pairs)
    assert digest_of(written.decides_by()) == digest_of(build_config(STEPS[step], pairs).decides_by())
    assert build_config(STEPS[step], {**pairs, "captions": "merge", "max_captions": 8}).max_captions == 8


def test_a_step_that_is_recalled_or_solved_in_buckets_merges_as_if_it_had_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(number, caption=f"text {number % 3}", sha256=f"{number // 4:064x}") for number in range(12)]
    jobs = [write_job(tmp_path / name, [rows[:5], rows[5:]]) for name in ("again", "once", "buckets")]
    steps = (ExactDuplicates(captions="merge"), NearDuplicates(captions="merge"))
    monkeypatch.setattr(run_module, "KEPT_ROWS", 1)
    run(jobs[0], [*steps, Rule(name="all", keep="true")])
    wanted = [run(job, [*steps, Rule(name="all", keep="caption_chars > 0")]).steps for job in jobs[:2]]
    for name in ("ALONE_ROWS", "JUDGED_ROWS"):
        monkeypatch.setattr(shuffle, name, 0)
    wanted.append(run(jobs[2], [*steps, Rule(name="all", keep="caption_chars > 0")]).steps)
    assert len(list(Path(jobs[0].ledgers, "kept").glob("step-*"))) >= 2
    assert wanted[0] == wanted[1] == wanted[2]
    assert ledger(jobs[0]) == ledger(jobs[1]) == ledger(jobs[2])
    (kept,) = [row for row in ledger(jobs[0]) if row["kept"]]
    assert [json.loads(facts)["caption"] for facts in kept["captions_facts"]] == ["text 0", "text 1", "text 2"]
