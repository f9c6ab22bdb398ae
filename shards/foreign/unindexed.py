"""Open tars that nobody has indexed: they are indexed on the first opening, and the index is kept for the next ones.

The exact order needs the count of samples of every tar, so the first opening reads all of them: every byte, or with
`fast` their headers. Later ones ask each tar for its size and its stamp (mtime, ETag), and index again what changed.
Processes of one machine that open the same tars at once wait for the first.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.shards.dataset import Dataset, ReadBytes, foreign_commit_name, open_dataset
from headrace.shards.foreign.find import COMPRESSED, find_tars
from headrace.shards.foreign.index import IndexConfig, index_folder
from headrace.shards.foreign.unit import INDEX_FOLDER
from headrace.shards.index import shard_name
from headrace.shards.index_cache import user_cache
from headrace.shards.manifest import SUMMARY_NAME
from headrace.text import without_secrets

log = logging.getLogger(__name__)

STAMPS_NAME = "stamps.json"
STAMPS_AT_ONCE = 16
VERSION = 1

Stamps = Mapping[str, Sequence[int | str]]
"""Name of a tar -> [size, what changes with its content]."""


def names_tars(url: str) -> bool:
    """True if `url` names a tar, or tars by a pattern, and not the folder of a dataset."""
    return urlpath.basename(url).endswith((".tar", *COMPRESSED))  # the latter to be told why they are not read


def default_index_dir(url: str) -> str:
    """Return where the index of the tars at `url` is kept on this machine: in the user's cache folder."""
    place = str(urlpath.local_path(url)) if urlpath.is_local(url) else without_secrets(url)
    root = user_cache()
    if root is None:
        raise ValueError(
            f"{without_secrets(url)}: the index of tars that have none would be kept in the cache folder of this user, "
            "who has no home; set HOME, or name a folder as the source's index_dir"
        )
    return str(root / "index" / hashlib.sha256(place.encode()).hexdigest()[:32])


def open_tars(url: str, *, index_dir: str = "", fast: bool = False, read: ReadBytes = files.read_bytes) -> Dataset:
    """Open the tars that `url` names (a tar, a glob, a brace pattern), indexed in `index_dir` unless they are already.

    Raises ValueError if it names none, or some in several folders; ShardError for a damaged tar.
    """
    found = find_tars([url])
    if len(found) > 1:
        raise ValueError(
            f"{url}: names tars in {len(found)} folders ({', '.join(list(found)[:3])}, ...); one source reads one "
            "folder: make each a source, or write them into one dataset with headrace import"
        )
    ((folder, tars),) = found.items()
    base = index_dir or default_index_dir(url)
    if not urlpath.is_local(base):
        raise ValueError(f"index_dir of tars without an index must be a local folder, got {base}")
    with _alone(base):
        stamps = _stamps_of(folder, tars)
        changed = _forget_changed(base, folder, stamps)
        dataset = None if changed or not files.exists(urlpath.join(base, SUMMARY_NAME)) else _open(folder, base, read)
        if dataset is None or (dataset.not_held and not fast):
            _index(url, folder, tars, IndexConfig(index_dir=base, fast=fast))
            dataset = _open(folder, base, read)
    if not dataset.shards.lack_sums:
        return dataset
    return dataclasses.replace(dataset, stamps={shard_name(name): str(stamp[-1]) for name, stamp in stamps.items()})


def _open(folder: str, base: str, read: ReadBytes) -> Dataset:
    return open_dataset(folder, index_dir=base, read=read)


def _index(url: str, folder: str, tars: Sequence[str], config: IndexConfig) -> None:
    log.warning(
        "%s: tars without an index (%d in %s): %s, once; the index is kept in %s "
        "(headrace index with --workers and --index-dir does it in many processes)",
        without_secrets(url),
        len(tars),
        without_secrets(folder),
        "reading their headers" if config.fast else "reading all of them (index_fast: true reads headers only)",
        config.index_dir,
    )
    began = time.monotonic()
    summary = index_folder(folder, tars, config)
    log.info("%s: %d samples indexed in %.0f s", without_secrets(url), summary.num_samples, time.monotonic() - began)


def _forget_changed(base: str, folder: str, stamps: Stamps) -> bool:
    """Make sure that nothing is kept of tars that are not what was indexed; True if there are any."""
    before = _read_stamps(base)
    if stamps == before:
        return False
    for name in sorted({*stamps, *before} if before is not None else ()):
        assert before is not None
        if stamps.get(name) == before.get(name):
            continue
        if name in before and name in stamps:
            log.warning("%s has changed since it was indexed: it is indexed again", urlpath.join(folder, name))
        commits = urlpath.join(base, INDEX_FOLDER, "commits")
        atomic.remove(urlpath.join(commits, f"{foreign_commit_name(shard_name(name))}.json"))
    # In this order: a kill in between leaves no manifest of what was, and stamps only of what will be indexed.
    atomic.remove(urlpath.join(base, SUMMARY_NAME))
    atomic.write_atomic(
        urlpath.join(base, STAMPS_NAME), canonical_json({"version": VERSION, "stamps": stamps}).encode()
    )
    return True


def _stamps_of(folder: str, tars: Sequence[str]) -> Stamps:
    listed = files.stamps_in(folder)
    # Where nothing can be listed (http), or a name is a link to elsewhere.
    asked = [name for name in tars if name not in listed]
    with ThreadPoolExecutor(STAMPS_AT_ONCE, thread_name_prefix="headrace-stamps") as pool:
        listed |= zip(asked, pool.map(files.stamp_of, [urlpath.join(folder, name) for name in asked]), strict=True)
    return {name: list(listed[name]) for name in tars}


def _read_stamps(base: str) -> Stamps | None:
    """Return the stamps of an earlier opening; none of any tar where they are damaged, so that all is indexed again.

    None where there was no opening: what `headrace index` made is taken as it takes it itself, by size.
    """
    try:
        held = json.loads(files.read_bytes(urlpath.join(base, STAMPS_NAME)))
        stamps = held["stamps"] if held["version"] == VERSION else {}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


@contextlib.contextmanager
def _alone(base: str) -> Iterator[None]:
    """Be the one process that looks after the index in `base`; the kernel ends the lock with the process."""
    folder = urlpath.local_path(urlpath.join(base, INDEX_FOLDER))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{base}: the index of tars that have none cannot be kept there ({error.strerror}); name another folder "
            "as the source's index_dir"
        ) from error
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for the process that makes the index", base)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.info("%s: cannot be locked (%s); take care that one process opens these tars first", base, error)
        yield
    finally:
        os.close(handle)
