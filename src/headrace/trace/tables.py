"""Rows of an audit as a file, written as they come: parquet, or CSV for a spreadsheet."""

from collections.abc import Iterable

import pyarrow as pa
from pyarrow import csv

from headrace import atomic
from headrace.shards.parquet import write_groups

SUFFIXES = (".parquet", ".csv")


def check_table_name(url: str) -> None:
    """Raise ValueError if a file of that name is none that `write_tables` writes."""
    if not url.endswith(SUFFIXES):
        raise ValueError(f"--out {url}: give a name that ends in {' or '.join(SUFFIXES)}")


def write_tables(url: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema to a file of any fsspec URL, one of them in memory at a time."""
    check_table_name(url)
    with atomic.atomic_file(url) as path:
        if url.endswith(".parquet"):
            write_groups(path, schema, (table for table in tables if table.num_rows))
            return
        with csv.CSVWriter(str(path), schema) as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
