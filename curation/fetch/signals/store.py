"""What a job has read of each site, on disk: so a job that goes on decides as it did, and the evidence stays.

One small JSON file a site, under `JOB/input/permissions`: what was read, its text, where and when. Whoever puts the
first one decides for all processes. A site that could not be reached leaves none: it is asked again.
"""

import calendar
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from headrace import atomic, files, urlpath
from headrace.config import canonical_json

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Document:
    """One file of a site; `text` is null where the site has none."""

    url: str
    answer: str
    """What the site answered, in words: `read`, or why there is nothing."""
    read_at: str
    """UTC, to the second."""
    text: str | None


class PermissionStore:
    """The documents of every site of one job."""

    def __init__(self, folder: str | None, *, max_age_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._max_age_seconds = max_age_seconds
        self._clock = clock

    def load(self, origin: str) -> dict[str, Document]:
        """Return what is known of a site and not too old, by the path of the file."""
        if self._folder is None:
            return {}
        try:
            record = json.loads(files.read_bytes(self._place(origin)))
            documents = {path: Document(**document) for path, document in record["documents"].items()}
            oldest = min((_seconds(document.read_at) for document in documents.values()), default=0.0)
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):  # a damaged file is as good as none: ask again
            return {}
        return documents if self._clock() - oldest <= self._max_age_seconds else {}

    def keep(self, origin: str, documents: dict[str, Document]) -> dict[str, Document]:
        """Store what was read of a site, and return what counts: that of a faster process, if there is one."""
        if self._folder is None:
            return documents
        record = {
            "schema": SCHEMA,
            "origin": origin,
            "documents": {path: asdict(document) for path, document in documents.items()},
        }
        data = (canonical_json(record) + "\n").encode("utf-8", "replace")
        if not atomic.put_if_absent(self._place(origin), data):
            known = self.load(origin)
            if known.keys() >= documents.keys():
                return known
            atomic.write_atomic(self._place(origin), data)
        return documents

    def now(self) -> str:
        """Return this moment as it is written down."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))

    def _place(self, origin: str) -> str:
        digest = hashlib.sha256(origin.encode()).hexdigest()
        return urlpath.join(self._folder or ".", digest[:2], f"{digest[2:34]}.json")


def _seconds(stamp: str) -> float:
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
