"""Forget rows of a job: find them, write the request, rewrite what holds them, commit.

From the request on the rows are forgotten: fetch, select and build of the job honour it whether or not the rewriting
has come to its end. Every step may be killed and run again; the bytes at the end are the same.
"""

import datetime
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from headrace import atomic, files, urlpath
from headrace.curation.datasets import shown_name
from headrace.curation.forget.classes import drop_class_names
from headrace.curation.forget.damage import check_files, of_raw, ways_on
from headrace.curation.forget.dataset import rewrite_dataset
from headrace.curation.forget.find import Copies, Found, Texts, dataset_names, find, near_copies
from headrace.curation.forget.plan import captions_taken, make_request
from headrace.curation.forget.request import Request, load_request
from headrace.curation.forget.tables import (
    own_raw_shards,
    purge_annotations,
    purge_lists,
    purge_raw,
    remove_unfinished,
    revise_ledger,
)
from headrace.curation.forgotten import forgotten_folder, open_requests, read_tombstones
from headrace.curation.job import Job, fence_of_owner
from headrace.curation.raw.img2dataset import adopted
from headrace.lease import Fence
from headrace.shards.commit import commit
from headrace.shards.progress import OnProgress, Progress, no_progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetOptions:
    """How far a take-down goes."""

    copies: Copies = "same"
    """Which other rows go too: `same` URL or bytes, `near` copies as well, `none`."""
    dataset: str | None = None
    """The one dataset that is rewritten, empty for the published one; None: all. With one, nothing else is purged."""
    keep_raw: bool = False
    """Leave raw shards, annotations and the spilled list as they are."""
    date: str = ""
    """Of the take-down, YYYY-MM-DD; empty: its number alone says when."""

    def __post_init__(self) -> None:
        if self.date:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"--date {self.date}: expected YYYY-MM-DD") from error

    @property
    def purges(self) -> bool:
        """True if raw shards, annotations and the spilled list lose the rows."""
        return not self.keep_raw and self.dataset is None


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetSummary:
    """What was forgotten, or would be."""

    job: str
    request: str
    """Number of the take-down; empty: nothing new was asked for."""
    finished: tuple[str, ...] = ()
    """Earlier take-downs that were killed, and are finished now."""
    rows: int = 0
    """Raw rows."""
    waiting: int = 0
    """Rows of the list that are in no raw shard yet."""
    samples: int = 0
    """Samples of datasets."""
    datasets: dict[str, list[str]] = field(default_factory=dict)
    """Dataset -> shards that are rewritten."""
    raw_shards: tuple[str, ...] = ()
    """Raw shards that are rewritten."""
    not_found: int = 0
    """Of the URLs, uids and sums that were asked for, those that nothing in the job has; they are recorded all the
    same."""
    near: int = 0
    """Rows that a step of select takes for copies of the forgotten ones, and that stay."""
    held: tuple[str, ...] = ()
    """What still holds the rows."""

    def __str__(self) -> str:
        if not self.request:
            done = f"take-down {', '.join(self.finished)} is finished; " if self.finished else ""
            return f"{done}nothing to forget that is not forgotten"
        shards = sum(map(len, self.datasets.values()))
        unknown = (
            f"; {self.not_found} of those asked for are nowhere in the job, and recorded" if self.not_found else ""
        )
        waiting = f"; {self.waiting} rows of the list that were not fetched yet" if self.waiting else ""
        near = f"; {self.near} near copies stay (--copies near takes them too)" if self.near else ""
        return (
            f"take-down {self.request}: {self.rows} rows, {self.samples} samples in {shards} shards of "
            f"{len(self.datasets)} datasets, {len(self.raw_shards)} raw shards{waiting}{unknown}{near}"
        )


def plan_forget(job: Job, asked: Texts, options: ForgetOptions) -> tuple[ForgetSummary, Request | None]:
    """Return what `run_forget` would do, and the request it would write: None if there is nothing new.

    Raises ValueError for a damaged file that would be rewritten.
    """
    if options.dataset is not None and options.dataset not in dataset_names(job):
        known = ", ".join(map(shown_name, dataset_names(job))) or "none"
        raise ValueError(f"{job.url} holds no dataset {shown_name(options.dataset)}; built are: {known}")
    found = find(job, asked, options.copies)
    request = make_request(job, found, date=options.date, purge=options.purges, dataset=options.dataset)
    own = own_raw_shards(job, request) if request.purge else []
    check_files(job, request.datasets, own)
    if not own and not (request.purge and found.listed) and _is_known(job, request):
        return ForgetSummary(job=job.url, request=""), None
    summary = ForgetSummary(
        job=job.url,
        request=request.name,
        rows=request.num_rows,
        waiting=len(set(found.listed) - {(row["input_file"], row["input_row"]) for row in found.rows.values()}),
        samples=request.num_samples,
        datasets={shown_name(name): plan.shards for name, plan in request.datasets.items()},
        raw_shards=tuple(own),
        not_found=_not_found(asked, found),
        near=0 if options.copies == "near" else len(near_copies(job, found.texts.uids)),
        held=tuple(_held(job, found, request, options)),
    )
    return summary, request


def _is_known(job: Job, request: Request) -> bool:
    """True if every digest is recorded, and no dataset and no ledger has one of them."""
    known = read_tombstones(job.url)
    sets = ((request.urls, known.urls), (request.uids, known.uids), (request.images, known.images))
    recorded = all(bytes.fromhex(text) in digests for texts, digests in sets for text in texts)
    return recorded and not request.datasets and not request.ledgers


def _not_found(asked: Texts, found: Found) -> int:
    have = {name: {facts.get(name) for facts in found.known()} for name in ("url", "uid", "sha256")}
    pairs = ((asked.urls, have["url"]), (asked.uids, have["uid"]), (asked.images, have["sha256"]))
    return sum(len(texts - there) for texts, there in pairs)


def _held(job: Job, found: Found, request: Request, options: ForgetOptions) -> Iterator[str]:
    """Yield what goes on holding the rows."""
    foreign = adopted(job)
    if found.rows and foreign is not None:
        yield f"the raw shards of others, which are never written, and their annotations: {foreign.url}"
    elif (found.rows or found.listed) and not request.purge:
        yield f"{job.raw}, annotations and the spilled list (--keep-raw, --dataset)"
    if found.unread:
        yield f"perhaps raw shards that cannot be read: {', '.join(sorted(found.unread))}"
    for name in sorted({"", *files.list_names(job.datasets)} - set(dataset_names(job))):
        if files.list_names(urlpath.join(job.dataset_named(name), "shards"), ".tar"):
            yield f"perhaps {shown_name(name)}, of which no shard was finished: build it to its end, or remove it"
    if options.dataset is not None:
        others = [name for name in dataset_names(job) if name != options.dataset]
        holding = [name in found.samples or any(captions_taken(job.dataset_named(name), found)) for name in others]
        yield from (shown_name(name) for name, holds in zip(others, holding, strict=True) if holds)
    if found.rows or found.listed:
        yield "the lists that the job was made of, other jobs that reuse its images, caches and copies elsewhere"


def run_forget(
    job: Job, asked: Texts, options: ForgetOptions, *, on_progress: OnProgress = no_progress
) -> ForgetSummary:
    """Finish take-downs that were killed, then forget what is asked for. The caller owns the job.

    Raises OSError once another process owns it.
    """
    fence = fence_of_owner(job)
    _remove_leftovers(job)
    finished = tuple(open_requests(job.url))
    for name in finished:
        _apply(job, load_request(job.url, name), on_progress, fence)
    if not asked.size():
        return ForgetSummary(job=job.url, request="", finished=finished)
    summary, request = plan_forget(job, asked, options)
    if request is None:
        return ForgetSummary(job=job.url, request="", finished=finished)
    fence.check()
    request.write(job.url)
    _apply(job, request, on_progress, fence)
    return replace(summary, finished=finished)


def _apply(job: Job, request: Request, on_progress: OnProgress, fence: Fence) -> None:
    """Rewrite whatever holds the rows of a request, then commit it."""
    total = sum(len(plan.shards) for plan in request.datasets.values()) + len(request.ledgers)
    raw = own_raw_shards(job, request) if request.purge else []
    total += len(raw)
    try:
        for done, step in enumerate(_steps(job, request, raw, fence), 1):
            step()
            on_progress(Progress(done=min(done, total), total=total, noun="files"))
    except ValueError as error:
        raise ValueError(
            f"take-down {request.name} is not finished: {error}; then run: headrace forget {job.url}"
        ) from error
    counts = {"rows": request.num_rows, "samples": request.num_samples, "raw_shards": len(raw)}
    fence.check()
    commit(forgotten_folder(job.url), request.name, counts)
    log.info("take-down %s: %d rows, %d samples", request.name, request.num_rows, request.num_samples)


def _remove_leftovers(job: Job) -> None:
    """Remove what killed writers have left anywhere in the job: it may hold what is to be forgotten."""
    if urlpath.is_local(job.url):
        for path in urlpath.local_path(job.url).rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def _steps(job: Job, request: Request, raw: list[str], fence: Fence) -> Iterator[Callable[[], object]]:
    """Yield what is to be done, in order: ledgers first, as the cards of datasets tell what they hold."""
    for ledger in request.ledgers:
        yield partial(revise_ledger, job, ledger, request, fence=fence)
    for name in request.datasets:
        for _ in rewrite_dataset(job, name, request, fence=fence):
            yield int
    for shard in raw:
        yield partial(_purge, job, shard, request.rows[shard], fence)
    if request.purge and request.listed:
        yield partial(_purge_lists, job, request, fence)
    yield partial(remove_unfinished, job, raw=request.purge, fence=fence)
    yield partial(drop_class_names, job.url, [job.dataset_named(name) for name in request.datasets], fence=fence)
    if request.rows or request.datasets or request.listed:
        # Reports hold pictures and texts, logs may name a URL.
        for folder in (job.report, job.logs, urlpath.join(job.ledgers, "kept")):
            yield partial(_remove_all, folder, fence)


def _remove_all(folder: str, fence: Fence) -> None:
    fence.check()
    atomic.remove_all(folder)


def _purge(job: Job, shard: str, keys: tuple[str, ...], fence: Fence) -> None:
    with of_raw():
        purge_raw(job, shard, keys, fence=fence)
        purge_annotations(job, shard, keys, fence=fence)


def _purge_lists(job: Job, request: Request, fence: Fence) -> None:
    with ways_on("put back the file as it was, or remove it"):
        purge_lists(job, request, fence=fence)


def texts_of(*, urls: tuple[str, ...], uids: tuple[str, ...], images: tuple[str, ...]) -> Texts:
    """Return what a user named. Raises ValueError for what is no uid, or no sha256."""
    for text in uids:
        _check_hex(text, 32, "--uid")
    for text in images:
        _check_hex(text, 64, "--sha256")
    if any(not text.strip() for text in urls):
        raise ValueError("--url is empty: give the URL of a row")
    return Texts(set(urls), {text.lower() for text in uids}, {text.lower() for text in images})


def _check_hex(text: str, letters: int, option: str) -> None:
    if len(text) != letters or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError(f"{option}: expected {letters} hexadecimal digits, got {len(text)} letters")
