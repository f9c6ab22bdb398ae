"""Steps that look at one row at a time: fetch, decode, rule, unsafe.

The one thing a reader would get wrong: no answer (NULL, NaN) is never a yes; such rows are dropped with a reason of
their own.
"""

from headrace.curation.select.expression import Checker, literal
from headrace.curation.select.step import Bench, Outcome, Prepared, require
from headrace.curation.select.steps.configs import Rule, Unsafe


def prepare_fetch() -> Prepared:
    """Drop what was not fetched; reason = error class."""

    def run(bench: Bench) -> Outcome:
        _write(
            bench,
            """
            SELECT __row, coalesce(error_class, status, 'unknown') AS reason, NULL::DOUBLE AS value,
                NULL::DOUBLE AS threshold, NULL::VARCHAR AS duplicate_of
            FROM here WHERE status IS DISTINCT FROM 'success'
            """,
        )
        return Outcome()

    return Prepared(("status", "error_class"), run)


def prepare_decode(checker: Checker) -> Prepared:
    """Drop what does not decode; reason = class of the error. Without the annotator `image` nothing is known."""
    known = "decode_error" in checker.names()

    def run(bench: Bench) -> Outcome:
        error = "decode_error" if known else "NULL::VARCHAR"
        _write(
            bench,
            f"""
            SELECT __row, split_part({error}, ':', 1) AS reason, NULL::DOUBLE AS value, NULL::DOUBLE AS threshold,
                NULL::VARCHAR AS duplicate_of
            FROM here WHERE {error} IS NOT NULL
            """,
        )
        return Outcome(None, {} if known else {"note": "no annotator `image`: not checked"})

    return Prepared(("decode_error",) if known else (), run)


def prepare_rule(step: Rule, checker: Checker) -> Prepared:
    """Drop what the expression is not true for."""
    where = f"rule {step.name!r}"
    keep = checker.check_boolean(step.keep, where)
    value = checker.check_number(step.value, f"{where}: value") if step.value else None

    def run(bench: Bench) -> Outcome:
        recorded = f"{value.sql} AS __value" if value else "NULL AS __value"
        _write(
            bench,
            f"""
            SELECT __row, CASE WHEN __keep IS NULL THEN 'null' ELSE 'false' END AS reason,
                __value::DOUBLE AS value, {literal(step.threshold)} AS threshold, NULL::VARCHAR AS duplicate_of
            FROM (SELECT __row, {keep.sql} AS __keep, {recorded} FROM here) WHERE __keep IS NOT TRUE
            """,
        )
        return Outcome(step.threshold)

    return Prepared((*keep.columns, *(value.columns if value else ())), run)


def prepare_unsafe(step: Unsafe, checker: Checker) -> Prepared:
    """Drop what scores at or over a threshold, or has no score."""
    tests = []
    if step.image_threshold is not None:
        tests.append(("image", "unsafe_image_score", step.image_threshold, "true"))
    if step.text_threshold is not None:
        tests.append(("text", "unsafe_text_score", step.text_threshold, "caption IS NOT NULL"))
    columns = [column for _, column, _, _ in tests] + (["caption"] if step.text_threshold is not None else [])
    require(checker, columns, f"step {step.name!r}")

    def run(bench: Bench) -> Outcome:
        reason, value, threshold = "", "", ""
        for kind, column, limit, needed in tests:
            absent = f"({column} IS NULL OR isnan({column}))"
            unsafe = f"NOT {absent} AND {column} >= {literal(limit)}"
            reason += f" WHEN {absent} AND {needed} THEN 'no-{kind}-score' WHEN {unsafe} THEN 'unsafe-{kind}'"
            value += f" WHEN {absent} AND {needed} THEN NULL WHEN {unsafe} THEN {column}::DOUBLE"
            threshold += f" WHEN ({absent} AND {needed}) OR ({unsafe}) THEN {literal(limit)}"
        _write(
            bench,
            f"""
            SELECT * FROM (
                SELECT __row, CASE{reason} END AS reason, CASE{value} END AS value, CASE{threshold} END AS threshold,
                    NULL::VARCHAR AS duplicate_of FROM here)
            WHERE reason IS NOT NULL
            """,
        )
        return Outcome(step.image_threshold if step.image_threshold is not None else step.text_threshold)

    return Prepared(tuple(columns), run)


def _write(bench: Bench, query: str) -> None:
    bench.connection.execute(f"CREATE TABLE verdict AS {query}")
