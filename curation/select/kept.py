"""Results of expensive work, kept beside the ledgers: `ledger/kept/KIND-DIGEST.parquet`.

A result is named by the digest of all that it follows from, so it is right whoever needs it again; nothing refers to
it, so any may be removed at any time. Of each kind the newest few stay.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.curation.ledger import NAME_LETTERS
from headrace.lease import NO_FENCE, Fence
from headrace.shards.parquet import read_table, write_parquet

log = logging.getLogger(__name__)

FOLDER = "kept"
MOST_OF_A_KIND = 8
_FACTS = b"headrace.kept"


@dataclass(frozen=True, slots=True)
class Kept:
    """The results kept in one folder."""

    url: str
    fence: Fence = NO_FENCE
    """Asked before a result is put in its place."""

    def find(self, kind: str, digest: str) -> tuple[pa.Table, dict[str, Any]] | None:
        """Return a table and the facts that were put with it; None if it is not there, or damaged."""
        url = self._url(kind, digest)
        try:
            table = read_table(url)
            facts = json.loads((table.schema.metadata or {})[_FACTS])
            if facts.pop("digest") != digest:
                raise ValueError("its digest is another")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is damaged (%s); it is made again", url, error)
            return None
        log.info("taken as it was: %s", url)
        return table.replace_schema_metadata(None), facts

    def put(self, kind: str, digest: str, table: pa.Table, facts: dict[str, Any]) -> None:
        """Keep a table, at once; older ones of its kind go where there are too many.

        What cannot be written is not kept: the run needs it no more.
        """
        text = json.dumps({"digest": digest, **facts}, sort_keys=True)
        url = self._url(kind, digest)
        self.fence.check()
        try:
            write_parquet(url, table.replace_schema_metadata({_FACTS: text.encode()}))
        except OSError as error:
            log.warning("%s is not kept for the next run: %s", url, error)
            return
        stamps = files.stamps_in(self.url)
        others = [name for name in stamps if name.startswith(f"{kind}-") and name != urlpath.basename(url)]
        others.sort(key=lambda name: (stamps[name][1], name))
        for name in others[: max(0, len(others) + 1 - MOST_OF_A_KIND)]:
            atomic.remove(urlpath.join(self.url, name))

    def _url(self, kind: str, digest: str) -> str:
        return urlpath.join(self.url, f"{kind}-{digest[:NAME_LETTERS]}.parquet")
