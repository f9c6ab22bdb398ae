"""The table that lies beside a tar: img2dataset's `NAME.parquet`, one row a sample, joined by its column `key`.

It may say what no member of the tar does. A file of that name that is no such table is someone else's, and is left
alone.
"""

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from headrace.shards.members import Facts, facts_of
from headrace.shards.parquet import read_table

log = logging.getLogger(__name__)

_KEY = "key"


def read_beside(tar_url: str) -> Mapping[str, Facts]:
    """Return what the table beside a tar says of each key; nothing where there is none."""
    url = f"{tar_url.removesuffix('.tar')}.parquet"
    try:
        table = read_table(url)
    except (FileNotFoundError, PermissionError):
        return {}
    except ValueError as error:
        log.info("%s: not read beside the tar: %s", url, error)
        return {}
    if _KEY not in table.column_names or len(set(table.column_names)) < len(table.column_names):
        log.info("%s: not read beside the tar: no column %s, or one name twice", url, _KEY)
        return {}
    found: dict[str, Facts] = {}
    for row in table.select(_plain(table.schema)).to_pylist():
        key = row.pop(_KEY)
        if isinstance(key, str) and key not in found:
            found[key] = facts_of(row)
    return found


def _plain(schema: pa.Schema) -> list[str]:
    """Return the names of columns whose values are scalars here; times and decimals are none."""
    kinds = {field.name: _value_type(field.type) for field in schema}
    return [name for name, kind in kinds.items() if _is_plain(kind) or (name == _KEY and pa.types.is_string(kind))]


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_plain(kind: pa.DataType) -> Any:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in (*texts, *numbers))
