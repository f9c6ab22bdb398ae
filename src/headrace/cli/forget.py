"""`headrace forget`: take rows of a job down, and what came of them."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, facts_of, say_json, say_next
from headrace.cli.stages import DryRunOption, TakeOverOption
from headrace.text import printable

_UID, _SHA256 = re.compile(r"[0-9A-Fa-f]{32}"), re.compile(r"[0-9A-Fa-f]{64}")


def forget_command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Folder of the job.")],
    url: Annotated[list[str] | None, typer.Option("--url", help="Forget this URL; may be repeated.")] = None,
    uid: Annotated[list[str] | None, typer.Option("--uid", help="The same by uid.")] = None,
    sha256: Annotated[
        list[str] | None, typer.Option("--sha256", help="The same by the sha256 of the image as fetched.")
    ] = None,
    list_file: Annotated[
        str, typer.Option("--list", metavar="FILE", help="A URL, a uid or a sha256 on each line.")
    ] = "",
    copies: Annotated[
        Literal["same", "near", "none"],
        typer.Option("--copies", help="Which others go too: the same URL or bytes, near copies as well, or none."),
    ] = "same",
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="Rewrite this dataset only (dataset, or a name of datasets/); purge nothing else."
        ),
    ] = None,
    keep_raw: Annotated[
        bool, typer.Option("--keep-raw", help="Leave raw shards, annotations and the spilled list as they are.")
    ] = False,
    date: Annotated[str, typer.Option("--date", metavar="YYYY-MM-DD", help="Date of the take-down, to be kept.")] = "",
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    json: JsonOption = False,
) -> None:
    """Take rows out of a job for good: datasets, ledgers, raw shards. Only digests of them stay.

    Without a name it finishes a take-down that was killed. Then: headrace audit RUN says which steps had seen them.

    Example: headrace forget jobs/first --url https://example.org/cat.jpg --dry-run
    """
    from headrace.curation.forget.stage import ForgetOptions, plan_forget, run_forget, texts_of
    from headrace.curation.forgotten import open_requests
    from headrace.curation.job import Job, own_job

    here = Job(job.rstrip("/") or job)
    _check_job(here.url)
    listed = _lines(list_file)
    asked = texts_of(
        urls=(*(url or ()), *listed["url"]),
        uids=(*(uid or ()), *listed["uid"]),
        images=(*(sha256 or ()), *listed["sha256"]),
    )
    if not asked.size() and not open_requests(here.url):
        raise ValueError(
            "nothing is named, and no take-down of this job is unfinished: give --url, --uid, --sha256 or --list FILE"
        )
    options = ForgetOptions(copies=copies, dataset=_dataset(dataset), keep_raw=keep_raw, date=date)
    if dry_run:
        summary, _ = plan_forget(here, asked, options)
        _say(summary, json=json, dry_run=True)
        return
    with own_job(here, take_over=take_over, forgetting=True), show_progress("forget") as on_progress:
        summary = run_forget(here, asked, options, on_progress=on_progress)
    _say(summary, json=json, dry_run=False)


def _check_job(url: str) -> None:
    from headrace import files, urlpath

    if not files.exists(urlpath.join(url, "job.json")):
        raise ValueError(f"{url} is no job (no job.json there); give the folder that the recipe names as `job`")


def _dataset(name: str | None) -> str | None:
    return None if name is None else "" if name in ("", "dataset") else name.removeprefix("datasets/")


def _lines(file: str) -> dict[str, list[str]]:
    """Return the lines of a file by what they are."""
    found: dict[str, list[str]] = {"url": [], "uid": [], "sha256": []}
    if not file:
        return found
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--list {file}: not a text in UTF-8: {error}") from error
    for line in filter(None, map(str.strip, text.split("\n"))):
        kind = "uid" if _UID.fullmatch(line) else "sha256" if _SHA256.fullmatch(line) else "url"
        found[kind].append(line)
    if not any(found.values()):
        raise ValueError(f"--list {file}: no line in it; expected a URL, a uid or a sha256 on each")
    return found


def _say(summary: object, *, json: bool, dry_run: bool) -> None:
    facts = facts_of("forget", summary) | {"dry_run": dry_run}
    if json:
        say_json("forget", facts)
        return
    print(printable(f"{'would forget' if dry_run else 'forget'}: {summary}"))
    for name, shards in facts["datasets"].items():
        shown = ", ".join(shards[:8]) + (", ..." if len(shards) > 8 else "")
        print(printable(f"  {name}: {'rewrite' if dry_run else 'rewrote'} {len(shards)} shards: {shown}"))
    for what in facts["held"]:
        print(printable(f"  still held by: {what}"))
    if not dry_run and facts["request"]:
        say_next(["headrace", "audit", "RUN"], ["headrace", "report", facts["job"]])
