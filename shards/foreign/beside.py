"""The table that lies beside a tar: img2dataset's `NAME.parquet`, one row a sample, joined by its column `key`.

It may say what no member of the tar does. A file of that name that is no such table is someone else's, and is left
alone.
"""

import logging
from collections.abc import Mapping

import pyarrow as pa

from headrace import urlpath
from headrace.shards.columns import is_text, kind_of, value_type
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
    names = table.column_names
    if _KEY not in names or len(set(names)) < len(names) or not is_text(table.schema.field(_KEY).type):
        log.info("%s: not read beside the tar: no column %s of text, or one name twice", url, _KEY)
        return {}
    found: dict[str, Facts] = {}
    for row in table.select(_plain(table.schema)).to_pylist():
        key = row.pop(_KEY)
        if isinstance(key, str) and key not in found:
            found[key] = facts_of(row, where=urlpath.basename(url))
    return found


def _plain(schema: pa.Schema) -> list[str]:
    """Return the names of columns whose values are scalars here; times and decimals are none."""
    return [field.name for field in schema if kind_of(field.type) or pa.types.is_null(value_type(field.type))]
