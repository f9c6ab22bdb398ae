"""What is asked for one row, and what becomes of the answer.

A record is all of a row that its outcome depends on: rows with equal records get one request and one outcome.
"""

import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from headrace.curation.fetch.boxes import parse_boxes
from headrace.curation.fetch.check import check_image, check_not_forgotten, check_not_listed, check_problem
from headrace.curation.fetch.config import RESIZING, FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.finish import Listed, fetched_body, finish, reused_body
from headrace.curation.fetch.net.address import AllowedPairs, check_address, literal_address, parse_url
from headrace.curation.fetch.net.fetcher import Fetcher
from headrace.curation.raw.schema import LISTED_COLUMNS, REUSE_COLUMN
from headrace.curation.raw.write import Outcome

_PLAIN = re.compile(r"https?://(?:[A-Za-z0-9-]+\.)+[A-Za-z]+(?::[0-9]+)?/")
"""The beginning of most URLs: what is wrong with one of these, if anything, is found when it is asked for."""


class Record(NamedTuple):
    """The columns of a row that decide its outcome."""

    url: str | None
    problem: str | None = None
    """Why the list gives no URL to fetch."""
    hit: str | None = None
    """Where an earlier job has the image."""
    expected_sha256: str | None = None
    expected_md5: str | None = None
    expected_sha512: str | None = None
    boxes: str | None = None
    """JSON."""

    @property
    def listed(self) -> Listed:
        """What the list says of the image."""
        return Listed(sha256=self.expected_sha256, md5=self.expected_md5, sha512=self.expected_sha512, boxes=self.boxes)


def records_of(rows: pa.Table) -> list[Record]:
    """Return the record of each row of a spilled list."""
    names = ("url", "problem", REUSE_COLUMN, *LISTED_COLUMNS)
    columns = [rows.column(name).to_pylist() if name in rows.column_names else [None] * rows.num_rows for name in names]
    return list(map(Record, *columns))


def refused(record: Record, allowed: AllowedPairs) -> Outcome | None:
    """Return the failure of a record that no request is made for, by its text alone; None if one may be.

    Most of some lists is such: they cost no task, no place and no line of the spool.
    """
    try:
        check_problem(record.problem)
        if record.hit is not None or _PLAIN.match(record.url or ""):
            return None
        url = parse_url(record.url)
        address = literal_address(url.raw_host or "")
        if address is not None:
            check_address(address, url.port or 0, allowed)
    except FetchError as error:
        return Outcome(error.error_class, error.message)
    return None


async def fetch_row(
    fetcher: Fetcher, record: Record, config: FetchConfig, resizing: int = RESIZING
) -> tuple[Outcome, bytes | None]:
    """Fetch and check the image of a record; return what becomes of it, and the image as it is to be stored.

    Raises FetchError where the host was not asked.
    """
    try:
        check_problem(record.problem)
        check_not_listed(fetcher.blocklist.has_url(record.url), "the URL or its host")
        check_not_forgotten(fetcher.forgotten.has_row(record.url, None))
        parse_boxes(record.boxes)  # before anything is asked for
        body = await reused_body(record.hit, record.listed, config)
        if body is None:
            data, header = await fetcher.fetch(record.url, partial(check_image, max_pixels=config.max_pixels))
            body = fetched_body(data, header, record.listed)
        check_not_listed(fetcher.blocklist.has_image(body.sha256), "the image")
        check_not_forgotten(fetcher.forgotten.has_image(body.sha256))
        outcome, image = await finish(body, record.listed, config, resizing)
    except FetchError as error:
        if error.not_asked:
            raise
        return Outcome(error.error_class, error.message), None
    return replace(outcome, size=len(image)), image
