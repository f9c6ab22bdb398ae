"""Pictures with their masks or boxes -> a dataset that a stream reads, once.

A stream reads shards, in an order that is arithmetic. So loose files are packed first: the picture into the tar, its
truth into a column of the index. Everything is checked on the way; a killed packing goes on with the next shard.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.lease import only_writer
from headrace.shards.commit import is_committed
from headrace.shards.dataset import open_dataset
from headrace.shards.manifest import SUMMARY_NAME
from headrace.shards.permutation import make_key
from headrace.shards.tar import check_key
from headrace.shards.write import Sample, finish_dataset, write_shard

SAMPLES_PER_SHARD = 1000
THREADS = 4
READ_AHEAD = 64
MARKER = "packing.json"
MAX_KEY_LETTERS = 60
WAIT_SECONDS = 2.0

log = logging.getLogger(__name__)


class Lot(Protocol):
    """What is to be packed: numbered samples, each checked as it is read."""

    @property
    def digest(self) -> str:
        """What differs where the samples or the rules do."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Columns of the index beside the usual ones."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """More entries of dataset.json, such as `classes`."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def sample(self, number: int) -> Sample:
        """Read a sample. Raises ValueError naming it if something is wrong with it."""
        ...


def is_dataset(url: str) -> bool:
    """True if `url` is a dataset already, with an index."""
    return files.exists(urlpath.join(url, SUMMARY_NAME))


def pack(lot: Lot, folder: Path) -> str:
    """Pack a lot into a folder, unless that was done before, and return the dataset's URL.

    Raises ValueError naming the first sample that is wrong, or a folder that holds something else.
    """
    if _is_whole(lot, folder):
        return str(folder)
    with contextlib.ExitStack() as stack:
        _own(folder, stack)
        if _is_whole(lot, folder):  # another process of this run has done it
            return str(folder)
        _begin(lot, folder)
        log.info("packing %d pictures into %s", len(lot), folder)
        for number, first in enumerate(range(0, len(lot), SAMPLES_PER_SHARD)):
            name = f"{number:05d}"
            if not is_committed(str(folder), name):
                numbers = range(first, min(first + SAMPLES_PER_SHARD, len(lot)))
                write_shard(str(folder), name, _read_ahead(lot, numbers), lot.schema)
        finish_dataset(str(folder), recipe_digest=lot.digest, facts=lot.facts)
    return str(folder)


def _own(folder: Path, stack: contextlib.ExitStack) -> None:
    """Become the one process that packs into a folder, however long another one takes: it may be of the same run."""
    while True:
        try:
            stack.enter_context(only_writer(str(folder)))
            return
        except ValueError as error:
            log.info("%s", error)
        time.sleep(WAIT_SECONDS)


def key_of(name: str) -> str:
    """Return a key for a file's name: as it is, if it may be one; else made of its letters and a hash of it."""
    try:
        return check_key(name)
    except ValueError:
        plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
        return f"{plain[-MAX_KEY_LETTERS:]}-{make_key(name):016x}"


def _is_whole(lot: Lot, folder: Path) -> bool:
    if not is_dataset(str(folder)):
        return False
    if open_dataset(str(folder)).recipe_digest != lot.digest:
        raise ValueError(
            f"{folder} holds pictures that were packed of other files or with other rules; name another folder with "
            "--packed, or remove it"
        )
    return True


def _begin(lot: Lot, folder: Path) -> None:
    """Throw away an unfinished packing of something else, and note whose this one is."""
    marker = folder / MARKER
    begun = json.loads(marker.read_text())["digest"] if marker.is_file() else None
    if begun is None and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no packed pictures; name another folder with --packed")
    if begun not in (None, lot.digest):
        log.info("%s: an unfinished packing of other files is thrown away", folder)
        for name in ("shards", "commits"):
            atomic.remove_all(str(folder / name))
    atomic.write_atomic(str(marker), json.dumps({"digest": lot.digest}).encode())


def _read_ahead(lot: Lot, numbers: range) -> Iterator[Sample]:
    """Yield samples in order, a few of which are read at the same time."""
    waiting = iter(numbers)
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = [pool.submit(lot.sample, number) for number in islice(waiting, READ_AHEAD)]
        try:
            while ahead:
                sample = ahead.pop(0).result()
                ahead += [pool.submit(lot.sample, number) for number in islice(waiting, 1)]
                yield sample
        finally:
            for one in ahead:
                one.cancel()
