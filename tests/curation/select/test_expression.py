"""SQL of a recipe: what passes, what is refused, and that nothing but one row's columns can be reached."""

import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from select_jobs import make_row, run, write_job

from headrace.curation.annotate.annotators import ANNOTATORS, column_hints
from headrace.curation.select.database import Limits, open_database
from headrace.curation.select.expression import Checker
from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, SelectStep, TopFraction

COLUMNS = {
    "width": "INTEGER",
    "caption": "VARCHAR",
    "clip_score": "FLOAT",
    "face_boxes": "FLOAT[][]",
    "facts": "STRUCT(year INTEGER)",
}


@pytest.fixture
def checker() -> Iterator[Checker]:
    with duckdb.connect() as connection:
        yield Checker(connection, COLUMNS)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("width >= 200 and clip_score > 0.3", ("clip_score", "width")),
        ("WIDTH between 1 and 3", ("width",)),
        ('"width" is not null -- wide enough', ("width",)),
        ("len(face_boxes) = 0 or list_max(face_boxes[1]) < 1", ("face_boxes",)),
        ("len(list_filter(face_boxes, lambda caption: caption[1] > width)) = 0", ("face_boxes", "width")),
        ("regexp_matches(caption, '^a ; -- b')", ("caption",)),
        ("facts.year > 2000", ("facts",)),
        ("case when width > 1 then caption in ('a', 'b') else true end", ("caption", "width")),
        ("true", ()),
    ],
)
def test_expressions_over_one_row_pass(checker: Checker, text: str, columns: tuple[str, ...]) -> None:
    assert checker.check_boolean(text, "rule").columns == columns


@pytest.mark.parametrize(
    "text",
    [
        "true; drop table probe",
        "true); drop table probe; select (true",
        "true) as value from probe; --",
        "true) as value from probe --",
        "true) as value from probe union select (true",
        "true) from probe where (true",
        "true), (false",
        "true) + (",
        "true /*",
        "exists (select 1)",
        "width in (select 1)",
        "width = (select max(width) from rows)",
        "width = any([1, 2])",
        "max(width) > 1",
        "count(*) > 1",
        "row_number() over () > 1",
        "random() < 0.5",
        "uuid() = caption",
        "now() > '2020-01-01'",
        "current_date > '2020-01-01'",
        "today() > '2020-01-01'",
        "age('2020-01-01'::timestamp) > interval 1 day",
        "list_max(list_transform(face_boxes, lambda box: random())) > 0.5",
        "getenv('HOME') = caption",
        "read_text('/etc/passwd') = caption",
        "current_setting('threads') = caption",
        "getvariable('x') = caption",
        "error('stop') is null",
        "unnest(face_boxes)[1] > 1",
        "columns('w.*') > 1",
        "* > 1",
        "#1 > 1",
        "? > 1",
        "$1 > 1",
        "rowid > 1",
        "probe.width > 1",
        "__row > 1",
        "__shard > 1",
        "json_serialize_sql('select 1') is null",
        "default",
        "",
        "  ",
        "width >",
        "width 'a'",
        "nonsense(width)",
    ],
)
def test_anything_else_is_refused_with_the_rule_named(checker: Checker, text: str) -> None:
    with pytest.raises(ValueError, match=r"^rule 'x'") as caught:
        checker.check_boolean(text, "rule 'x'")
    assert "\n" not in str(caught.value)


def test_unknown_column_lists_the_known_ones(checker: Checker) -> None:
    with pytest.raises(ValueError, match=r"unknown column 'widht'; did you mean 'width'\? known columns: caption"):
        checker.check_boolean("widht > 1", "rule 'x'")


def test_a_rule_must_be_true_or_false_and_a_score_a_number(checker: Checker) -> None:
    with pytest.raises(ValueError, match="must be true or false, but it is of type INTEGER"):
        checker.check_boolean("width", "rule 'x'")
    with pytest.raises(ValueError, match="must be a number, but it is of type VARCHAR"):
        checker.check_number("caption", "step 'x'")
    with pytest.raises(ValueError, match="type BOOLEAN"):
        checker.check_number("width > 1", "step 'x'")


def test_the_database_opens_no_file_and_no_setting(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with open_database(str(tmp_path / "ledger"), Limits(threads=1)) as connection:
        for query in (
            f"SELECT * FROM read_csv('{secret}')",
            f"SELECT * FROM '{secret}'",
            f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
            f"ATTACH '{tmp_path / 'other.db'}'",
            "SET enable_external_access = true",
            "SET threads = 8",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SELECT * FROM secret_frame",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(query)
    assert [path.name for path in tmp_path.iterdir() if path.name != "ledger"] == ["secret.csv"]
    assert not list((tmp_path / "ledger").iterdir())


def test_too_little_memory_names_the_number_to_raise(tmp_path: Path) -> None:
    query = "SELECT len(list(number)) FROM range(100_000_000) AS numbers(number)"
    with (
        pytest.raises(
            ValueError, match=r"^select needs more than limits.memory_bytes, 67108864, .*Out of Memory Error"
        ),
        open_database(str(tmp_path / "ledger"), Limits(memory_bytes=64 << 20, threads=1)) as connection,
    ):
        connection.execute(query)
    assert not list((tmp_path / "ledger").iterdir())


@pytest.mark.parametrize(
    "step",
    [
        Rule(name="fails", keep="caption::INTEGER > 2000"),
        Rule(name="fails", keep="false", value="caption::INTEGER"),
        Rule(name="fails", keep="regexp_matches('a', caption)"),
        TopFraction(name="fails", score="caption::INTEGER", fraction=0.5),
        ExactDuplicates(name="fails", order=("caption::INTEGER desc",)),
        NearDuplicates(name="fails", order=("caption::INTEGER desc",)),
    ],
)
def test_an_error_on_a_row_names_the_step(tmp_path: Path, step: SelectStep) -> None:
    job = write_job(tmp_path, [[make_row(number, caption="no number (", sha256="0" * 64) for number in range(2)]])
    with pytest.raises(ValueError, match=r"^step 'fails': an expression has no value for a row: .* Error"):
        run(job, [step])


def test_a_rule_sees_only_rows_that_earlier_steps_kept(tmp_path: Path) -> None:
    rows = [make_row(number, caption=text) for number, text in enumerate(["1999", "2001", "no number"])]
    job = write_job(tmp_path, [rows])
    steps = [
        Rule(name="digits", keep="regexp_full_match(caption, '[0-9]+')"),
        Rule(name="year", keep="caption::INTEGER > 2000"),
    ]
    assert run(job, steps).kept == 1


def test_every_annotator_column_has_its_hint() -> None:
    made = {column: name for name, kind in ANNOTATORS.items() for column in kind.columns.names}
    assert {column: hint.split()[1].rstrip(",") for column, hint in column_hints().items()} == {
        column: f"annotate.{name}" for column, name in made.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "len(range(1000000000)) > 1",
        "len(generate_series(1, 1000000000)) > 1",
        "length(repeat('a', 1000000000)) > 1",
        "length(lpad('a', 1000000000, 'b')) > 1",
        "len(list_resize([1], 1000000000)) > 1",
    ],
)
def test_a_rule_of_unbounded_size_is_refused_before_anything_is_computed(checker: Checker, text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="is unknown, or not one of the row-wise functions"):
        checker.check_boolean(text, "rule 'x'")
    assert time.process_time() - began < 5


def test_a_long_or_deep_rule_is_one_short_line(checker: Checker) -> None:
    deep = "CASE WHEN true THEN " * 400 + "1" + " END" * 400
    for text in ("1 + " * 5000 + "1", deep, "width > 'x' AND " * 300 + "nothing"):
        with pytest.raises(ValueError, match="rule") as caught:
            checker.check(text, "rule 'x'")
        assert len(str(caught.value)) < 1000
