"""The real img2dataset as the part that asks for URLs: a raw shard is one run of it, in a process of its own.

It gets what passed our screening: http(s) URLs whose names resolve to public addresses. It follows redirects by itself
and looks names up again, so nothing holds for where they lead: that is why `accept_unscreened` must be said. It is told
to leave images as they are; limits, sums, boxes and resizing are ours, and so is the raw shard.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from headrace.curation.blocklist import load_blocklist
from headrace.curation.fetch.boxes import parse_boxes
from headrace.curation.fetch.check import check_image, check_not_forgotten, check_not_listed, check_problem
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.finish import fetched_body, finish, reused_body
from headrace.curation.fetch.lists.spill import read_places
from headrace.curation.fetch.net.address import parse_allowed, parse_url
from headrace.curation.fetch.net.resolve import CheckedResolver
from headrace.curation.fetch.reuse.join import add_hits
from headrace.curation.fetch.row import Record, records_of
from headrace.curation.fetch.unit import FetchUnit, write_unit
from headrace.curation.forgotten import read_tombstones
from headrace.curation.raw.img2dataset import foreign_error_class, foreign_shards, recorded_foreign_table
from headrace.curation.raw.spans import image_spans
from headrace.curation.raw.write import Outcome
from headrace.shards.commit import is_committed
from headrace.shards.heartbeat import beat, expect
from headrace.shards.parquet import write_parquet
from headrace.shards.payloads import read_payloads
from headrace.text import MAX_SHOWN, one_line

log = logging.getLogger(__name__)

LOG_TAIL_BYTES = 4096
READ_AT_ONCE = 64

# A file, as img2dataset's processes import the one that began them.
SCRIPT = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


def fetch_shard(unit: FetchUnit) -> None:
    """Fetch one raw shard and commit it; nothing happens if it is committed.

    Raises ChildProcessError if img2dataset fails, with the last line that it said.
    """
    if is_committed(unit.shard.folder, unit.shard.name) or is_committed(unit.rows.folder, unit.shard.name):
        return
    rows = add_hits(read_places(unit.rows, unit.start, unit.stop), unit.rows, unit.reuse)
    records = records_of(rows)
    expect(rows=len(records))
    with tempfile.TemporaryDirectory(prefix="headrace-img2dataset-") as folder, tempfile.TemporaryFile() as spool:
        shard = _Shard(unit, Path(folder), spool)
        asyncio.run(shard.settle(records))
        outcomes = [shard.outcomes[record] for record in records]
        spool.flush()
        write_unit(unit, rows, outcomes, lambda outcome: os.pread(spool.fileno(), outcome.size, outcome.offset))


class _Shard:
    """What becomes of the records of one raw shard."""

    def __init__(self, unit: FetchUnit, folder: Path, spool: IO[bytes]) -> None:
        self._config = unit.config
        self._resizing = unit.resizing
        self._folder = folder
        self._spool = spool
        self._blocklist = load_blocklist(unit.config.blocklist)
        self._forgotten = read_tombstones(unit.job_url)
        self.outcomes: dict[Record, Outcome] = {}

    async def settle(self, records: Sequence[Record]) -> None:
        """Find out what becomes of each record."""
        asked = await self._screened(dict.fromkeys(records))
        by_url: dict[str, list[Record]] = {}
        for record in asked:
            by_url.setdefault(record.url or "", []).append(record)
        if by_url:
            self._run(list(by_url))
            for url, data, error in self._results():
                for record in by_url.pop(url):
                    await self._store(record, data, error)
        for record in (record for left in by_url.values() for record in left):
            self._fail(record, FetchError("protocol", "img2dataset says nothing of this URL"))

    async def _screened(self, records: dict[Record, None]) -> list[Record]:
        """Return what img2dataset may ask for; the others are settled."""
        resolver = CheckedResolver(parse_allowed(self._config.allow_private))
        try:
            passed = await asyncio.gather(*(self._passes(record, resolver) for record in records))
        finally:
            await resolver.close()
        return [record for record, may in zip(records, passed, strict=True) if may]

    async def _passes(self, record: Record, resolver: CheckedResolver) -> bool:
        try:
            check_problem(record.problem)
            check_not_listed(self._blocklist.has_url(record.url), "the URL or its host")
            check_not_forgotten(self._forgotten.has_row(record.url, None))
            parse_boxes(record.boxes)
            body = await reused_body(record.hit, record.listed, self._config)
            if body is None:
                url = parse_url(record.url)
                await resolver.resolve(url.raw_host or "", url.port or 0)
                return True
            self._keep(record, *await finish(body, record.listed, self._config, self._resizing))
        except FetchError as error:
            self._fail(record, error)
        return False

    def _run(self, urls: list[str]) -> None:
        """Let img2dataset fetch URLs into the folder `out`."""
        write_parquet(str(self._folder / "list.parquet"), pa.table({"url": pa.array(urls, pa.string())}))
        (self._folder / "run.py").write_text(SCRIPT)
        command = [sys.executable, str(self._folder / "run.py"), json.dumps(self._arguments(len(urls)))]
        path = self._folder / "log.txt"
        with path.open("wb") as log_file:
            ended = subprocess.run(command, stdout=log_file, stderr=log_file, stdin=subprocess.DEVNULL, check=False)
        said = path.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
        log.info("img2dataset: %d URLs, exit code %d", len(urls), ended.returncode)
        if ended.returncode:
            last = one_line(said[-1] if said else "")[:MAX_SHOWN]
            raise ChildProcessError(
                f"img2dataset ended with exit code {ended.returncode}: {last}; "
                "nothing of this shard is committed: run the same command again"
            )

    def _arguments(self, num_urls: int) -> dict[str, Any]:
        config = self._config
        return {
            "url_list": str(self._folder / "list.parquet"),
            "input_format": "parquet",
            "url_col": "url",
            "output_format": "webdataset",
            "output_folder": str(self._folder / "out"),
            "processes_count": 1,
            "thread_count": config.concurrency,
            "number_sample_per_shard": num_urls,
            "disable_all_reencoding": True,
            "extract_exif": False,
            "compute_hash": None,
            "retries": config.retries,
            "timeout": max(1, round(config.attempt_seconds)),
            "enable_wandb": False,
            "disallowed_header_directives": None if config.honor_opt_out else [],
        }

    def _results(self) -> Iterator[tuple[str, bytes | None, FetchError | None]]:
        """Yield what img2dataset has for each URL: bytes, or why there are none."""
        folder = str(self._folder / "out")
        for shard in foreign_shards(folder):
            table = recorded_foreign_table(folder, shard)
            tar = f"{folder}/{shard}.tar"
            spans, _ = image_spans(tar)
            for batch in table.select(["key", "url", "status", "error_message"]).to_batches(max_chunksize=READ_AT_ONCE):
                rows = batch.to_pylist()
                there = [row["key"] for row in rows if row["key"] in spans]
                images = dict(zip(there, read_payloads(tar, [spans[key] for key in there]), strict=True))
                for row in rows:
                    message = one_line(row["error_message"] or "no image")[:MAX_SHOWN]
                    error = FetchError(foreign_error_class(row["status"], message), f"img2dataset: {message}")
                    data = images.get(row["key"]) if row["status"] == "success" else None
                    yield row["url"], data, None if data is not None else error

    async def _store(self, record: Record, data: bytes | None, error: FetchError | None) -> None:
        try:
            if error is not None or data is None:
                raise error or FetchError("empty", "the body is empty")
            if len(data) > self._config.max_bytes:
                raise FetchError("too-large", f"the body is over the cap of {self._config.max_bytes} bytes")
            body = fetched_body(data, check_image(data, max_pixels=self._config.max_pixels), record.listed)
            check_not_listed(self._blocklist.has_image(body.sha256), "the image")
            check_not_forgotten(self._forgotten.has_image(body.sha256))
            self._keep(record, *await finish(body, record.listed, self._config, self._resizing))
        except FetchError as failed:
            self._fail(record, failed)

    def _keep(self, record: Record, outcome: Outcome, image: bytes) -> None:
        self.outcomes[record] = replace(outcome, offset=self._spool.tell(), size=len(image))
        self._spool.write(image)
        beat(rows=1, bytes=len(image))

    def _fail(self, record: Record, error: FetchError) -> None:
        self.outcomes[record] = Outcome(error.error_class, error.message)
        beat(rows=1, failed=error.error_class)
