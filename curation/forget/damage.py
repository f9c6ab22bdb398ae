"""What a take-down rewrites is read before its request is written: from then on no other stage of the job starts.

A file may be damaged later all the same. Then the error says which, and how the take-down goes on without it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from headrace import files, urlpath
from headrace.curation.forget.find import index_url
from headrace.curation.forget.request import DatasetPlan
from headrace.curation.job import Job
from headrace.curation.ledger import Ledger
from headrace.shards.commit import SHARD_FIELDS, committed, is_committed, read_commit
from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.forgotten import read_versions
from headrace.shards.images.formats import IMAGE_EXTENSIONS
from headrace.shards.parquet import ParquetReader
from headrace.shards.tar import scan_tar

NUM_READERS = 8


@contextlib.contextmanager
def ways_on(advice: str) -> Iterator[None]:
    """Say of a file that is damaged, or not there, what to do."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}; {advice}") from error


def of_raw() -> contextlib.AbstractContextManager[None]:
    """Say it of a file of a raw shard, or of its annotations."""
    return ways_on("put back the file as it was, or remove it")


def of_shard(dataset: str, shard: str) -> contextlib.AbstractContextManager[None]:
    """Say it of a file of a dataset's shard."""
    record = urlpath.join(dataset, "commits", f"{shard}.json")
    return ways_on(f"put back the file as it was, or give the whole shard up: remove {record}")


def of_dataset(dataset: str) -> contextlib.AbstractContextManager[None]:
    """Say it of what holds a dataset together."""
    return ways_on(f"put back the file as it was, or give the whole dataset up: remove the folder {dataset}")


def of_ledger(ledger: Ledger) -> contextlib.AbstractContextManager[None]:
    """Say it of a ledger."""
    return ways_on(f"put back the file as it was, or remove {ledger.table}: select makes it again")


def check_files(job: Job, datasets: Mapping[str, DatasetPlan], raw: Iterable[str]) -> None:
    """Read what is to be rewritten of `datasets`, by name, and of `raw` shards; the ledgers and lists were just read.

    Raises ValueError for the first file that is damaged. Of tars only the headers are read.
    """
    checks: list[Callable[[], None]] = [partial(_check_raw, job, shard) for shard in raw]
    for name, plan in datasets.items():
        dataset = job.dataset_named(name)
        checks.append(partial(_check_dataset, dataset))
        for shard in plan.shards:
            tables = [urlpath.join(job.build_failures(name), f"{shard}.parquet")] if shard in plan.failures else []
            samples = shard in plan.gone or shard in plan.captions
            checks.append(partial(_check_shard, dataset, shard, samples=samples, tables=tables))
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for _ in readers.map(lambda check: check(), checks):
            pass


def _check_raw(job: Job, shard: str) -> None:
    parent = urlpath.join(job.url, "annotations")
    folders = [urlpath.join(parent, name) for name in files.list_names(parent)]
    with of_raw():
        for folder in (job.raw, *(folder for folder in folders if is_committed(folder, shard))):
            read_commit(folder, shard)
            _check_table(urlpath.join(folder, f"{shard}.parquet"))
        _check_table(urlpath.join(job.raw, "images", f"{shard}.parquet"))
        tar = urlpath.join(job.raw, f"{shard}.tar")
        if files.exists(tar):
            scan_tar(tar)


def _check_dataset(dataset: str) -> None:
    with of_dataset(dataset):
        if files.exists(urlpath.join(dataset, "dataset.json")):
            open_dataset(dataset)
        read_versions(dataset)
    check_records(dataset)


def check_records(dataset: str) -> None:
    """Read the record of every shard, as dataset.json is made again of all of them. Raises ValueError for damage."""

    def check(shard: str) -> None:
        with of_shard(dataset, shard):
            read_commit(dataset, shard, fields=SHARD_FIELDS)

    with ThreadPoolExecutor(NUM_READERS) as readers:
        for _ in readers.map(check, committed(dataset)):
            pass


def _check_shard(dataset: str, shard: str, *, samples: bool, tables: Iterable[str]) -> None:
    with of_shard(dataset, shard):
        read_commit(dataset, shard)
        for url in tables:
            _read(url)
        if samples:
            table = _read(index_url(dataset, shard))
            image_places(urlpath.join(dataset, "shards", f"{shard}.tar"), table["key"].to_pylist())


def _check_table(url: str) -> None:
    if files.exists(url):
        _read(url)


def _read(url: str) -> pa.Table:
    return ParquetReader(files.read_bytes(url), url).read()


def image_places(tar: str, keys: Iterable[str]) -> dict[str, tuple[str, int, int]]:
    """Return key -> (extension, offset, bytes) of the image of each sample, by the headers of the tar.

    Raises ShardError for a tar that is damaged, or has none of one of `keys`.
    """
    places: dict[str, tuple[str, int, int]] = {}
    for member in scan_tar(tar):
        key, _, extension = member.name.partition(".")
        if extension in IMAGE_EXTENSIONS:
            places[key] = (extension, member.offset, member.size)
    missing = next((key for key in keys if key not in places), None)
    if missing is not None:
        raise ShardError("no image, though the index names it", shard=tar, key=missing)
    return places
