"""Whose captions a row has: tables of the database that steps write and the sieve hands over.

`captions` (`__row`, `source`) says whose caption stands first where it is not the row's own. `merged` (`__row`,
`source`, `code`, `place`) says whose follow, from place 1 on. A source is always the row that the caption came from
first, however many rows have had it since. What follows goes wherever the first goes.
"""

import duckdb
import pyarrow as pa

from headrace.curation.select.database import count
from headrace.curation.select.load import CAPTION_CODE
from headrace.curation.select.step import Bench

MAX_CAPTIONS = 1000
USUAL_CAPTIONS = 16
"""What `max_captions` is where a recipe does not say it."""
MERGED_FIELDS = (pa.field("place", pa.int64()), pa.field("code", pa.binary()))
"""What `captions_merged` has besides `__row` and `source`."""


def create_captions(connection: duckdb.DuckDBPyConnection) -> None:
    """Create both tables, empty."""
    connection.execute("CREATE TABLE captions (__row BIGINT, source BIGINT)")
    connection.execute("CREATE TABLE merged (__row BIGINT, source BIGINT, code BLOB, place BIGINT)")


def check_most(most: int, captions: str, step: str) -> None:
    """Raise ValueError for a `max_captions` that makes no sense, or would have no effect.

    The usual number is allowed everywhere: a job's `recipe.yaml` writes every key out.
    """
    if not 2 <= most <= MAX_CAPTIONS:
        raise ValueError(f"max_captions must be 2 to {MAX_CAPTIONS}, got {most}")
    if captions != "merge" and most != USUAL_CAPTIONS:
        raise ValueError(
            f"step {step!r}: max_captions is {most} and captions is {captions}, with which it has no effect; say "
            "captions: merge, or leave max_captions out"
        )


def name_members(bench: Bench, query: str) -> None:
    """Say whose captions rows that are kept are to hold, for `merge_captions`.

    `query` gives `__row` (kept), `member` (of its group, itself too) and `place` (of the member's captions among all).
    """
    bench.connection.execute(f"CREATE TABLE caption_members AS {query}")


def merge_captions(bench: Bench, most: int) -> dict[str, int]:
    """Let the rows of `caption_members` hold the different captions of their members, at most `most` each.

    Of equal captions the first counts. Returns what the summary says.
    """
    connection = bench.connection
    # A member may hold captions of an earlier step: they come behind its own.
    connection.execute(
        f"""
        CREATE TABLE captions_merged AS
        WITH members AS (FROM caption_members),
        listed AS (
            SELECT members.__row, coalesce(captions.source, member) AS source, here.{CAPTION_CODE} AS code,
                members.place AS of_member, 0 AS inside, member <> members.__row AS added
            FROM members JOIN here ON here.__row = member LEFT JOIN captions ON captions.__row = member
            WHERE here.{CAPTION_CODE} IS NOT NULL
            UNION ALL
            SELECT members.__row, merged.source, merged.code, members.place, merged.place, member <> members.__row
            FROM members JOIN merged ON merged.__row = member),
        different AS (
            SELECT * FROM listed QUALIFY row_number() OVER (PARTITION BY __row, code ORDER BY of_member, inside) = 1)
        SELECT __row, source, code, added,
            row_number() OVER (PARTITION BY __row ORDER BY of_member, inside) - 1 AS place
        FROM different
        """
    )
    cut = count(connection, f"SELECT count(*) FROM captions_merged WHERE place >= {most}")
    connection.execute(f"DELETE FROM captions_merged WHERE place >= {most}")
    added = count(connection, "SELECT count(*) FROM captions_merged WHERE added")
    connection.execute("ALTER TABLE captions_merged DROP COLUMN added")
    _drop(connection, "caption_members")
    return {"captions_merged": added, "captions_cut": cut}


def hand_over(connection: duckdb.DuckDBPyConnection) -> int | None:
    """Bring `captions` and `merged` up to what a step wrote into `captions_taken` or `captions_merged`.

    Returns how many rows have got the caption of another as their first; None if it wrote neither.
    """
    if has_table(connection, "captions_merged"):
        return _hand_merged(connection)
    return _hand_taken(connection) if has_table(connection, "captions_taken") else None


def has_table(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """True if a step made this table."""
    return bool(count(connection, f"SELECT count(*) FROM duckdb_tables() WHERE table_name = '{name}'"))


def _hand_taken(connection: duckdb.DuckDBPyConnection) -> int:
    # The other row may have taken its caption itself, and hold more.
    connection.execute(
        """
        CREATE TABLE handed AS
        SELECT captions_taken.__row, coalesce(captions.source, captions_taken.source) AS source,
            captions_taken.source AS held_by
        FROM captions_taken LEFT JOIN captions ON captions.__row = captions_taken.source
        """
    )
    connection.execute(
        """
        CREATE TABLE followed AS
        SELECT handed.__row, merged.source, merged.code, merged.place
        FROM handed JOIN merged ON merged.__row = handed.held_by
        """
    )
    for table in ("captions", "merged"):
        connection.execute(f"DELETE FROM {table} WHERE __row IN (SELECT __row FROM handed)")
    connection.execute("INSERT INTO captions SELECT __row, source FROM handed")
    connection.execute("INSERT INTO merged SELECT * FROM followed")
    taken = count(connection, "SELECT count(*) FROM handed")
    _drop(connection, "handed", "followed", "captions_taken")
    return taken


def _hand_merged(connection: duckdb.DuckDBPyConnection) -> int:
    connection.execute(
        """
        CREATE TABLE handed AS
        SELECT first.__row, first.source, first.source <> coalesce(captions.source, first.__row) AS is_new
        FROM captions_merged AS first LEFT JOIN captions USING (__row) WHERE first.place = 0
        """
    )
    for table in ("captions", "merged"):
        connection.execute(f"DELETE FROM {table} WHERE __row IN (SELECT __row FROM handed)")
    connection.execute("INSERT INTO captions SELECT __row, source FROM handed WHERE source <> __row")
    connection.execute("INSERT INTO merged SELECT __row, source, code, place FROM captions_merged WHERE place > 0")
    taken = count(connection, "SELECT count(*) FROM handed WHERE is_new")
    _drop(connection, "handed", "captions_merged")
    return taken


def _drop(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    for name in names:
        connection.execute(f"DROP TABLE {name}")
