"""`headrace audit`: which samples a run saw, how often and from which hosts; or at which steps it saw one of them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, say_json, say_next
from headrace.text import cut_line, one_line, printable, without_secrets

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.trace.find import Asked
    from headrace.trace.history import History
    from headrace.trace.lookup import Opened
    from headrace.trace.replaced import Replacements
    from headrace.trace.tally import SourceTally, Tally

SHOWN_SAMPLES, SHOWN_STEPS = 20, 12


def audit_command(
    target: Annotated[str, typer.Argument(metavar="RUN|MIXTURE.yaml", help="Folder of a run, or a mixture file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Overrides of the mixture, say where a dataset lies now."),
    ] = None,
    upto: Annotated[
        int | None,
        typer.Option("--upto", min=1, help="Last step that counts; default: the last that the run has done."),
    ] = None,
    global_batch: Annotated[
        int, typer.Option("--global-batch", min=0, help="Of a mixture file: images in a step, over all processes.")
    ] = 0,
    url: Annotated[
        list[str] | None, typer.Option("--url", help="At which steps this URL was seen; may be repeated.")
    ] = None,
    uid: Annotated[list[str] | None, typer.Option("--uid", help="The same by uid.")] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="The same by key.")] = None,
    urls: Annotated[str, typer.Option("--urls", metavar="FILE", help="URLs, one a line.")] = "",
    out: Annotated[
        str,
        typer.Option("--out", metavar="FILE", help="Write the rows to this .parquet or .csv, and not to the screen."),
    ] = "",
    top: Annotated[
        int, typer.Option("--top", min=0, help="Hosts to name; with 0, and no --out, no index is read.")
    ] = 20,
    read: Annotated[
        bool,
        typer.Option("--read", help="Read steps again of which no quarantine file tells which samples were replaced."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what the steps of a run saw: by source, by host, by sample; or when it saw one sample. Computed, not logged.

    For a take-down: --url, --uid, --key or --urls FILE name every step at which that sample was seen, or was to be.

    Example: headrace audit runs/a --url https://example.org/cat.jpg
    """
    from headrace.trace.find import Asked
    from headrace.trace.history import open_history
    from headrace.trace.lookup import open_sources
    from headrace.trace.replaced import read_replacements
    from headrace.trace.reread import read_steps_again
    from headrace.trace.tables import check_table_name

    if out:
        check_table_name(out)
    asked = Asked(_texts(url=[*(url or ()), *_lines(urls)], uid=uid or (), key=key or ()))
    history = open_history(target, global_batch=global_batch, overrides=overrides or ())
    last = _last(history, upto)
    opened = open_sources(history)
    replacements = read_replacements(opened)
    if read:
        with show_progress("audit") as on_progress:
            read_steps_again(opened, replacements, list(replacements.not_told(last)), on_progress=on_progress)
    facts = {"target": target, "upto": last, "done": history.done if history.is_run else None}
    if asked.size:
        _say_occurrences(opened, replacements, asked, facts, out=out, json=json)
    else:
        _say_tally(opened, replacements, facts, out=out, top=top, json=json)


def _texts(**given: Sequence[str]) -> dict[str, list[str]]:
    for kind, texts in given.items():
        if "" in texts:
            raise ValueError(f"--{kind} is empty: give the {kind} of a sample")
    return {kind: list(dict.fromkeys(texts)) for kind, texts in given.items() if texts}


def _lines(file: str) -> list[str]:
    if not file:
        return []
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--urls {file}: not a text in UTF-8: {error}") from error
    lines = [line.strip() for line in text.split("\n")]
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"--urls {file}: no line in it; expected a URL on each")
    return found


def _last(history: "History", upto: int | None) -> int:
    if not history.is_run and upto is None:
        raise ValueError(f"{history.name} is a mixture: give --upto, the last step that counts")
    last = history.done if upto is None else upto
    if not last:
        raise ValueError(f"{history.name}: the run has done no step yet; give --upto to see what it will do")
    history.positions(last)  # refuses what is behind the last position there can be
    return last


def _say_occurrences(
    opened: "Opened", replacements: "Replacements", asked: "Asked", facts: dict[str, Any], *, out: str, json: bool
) -> None:
    from headrace.trace.find import find_samples
    from headrace.trace.occurrences import SCHEMA, occurrence_tables
    from headrace.trace.tables import write_tables

    counts: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    found: set[str] = set()

    def counted(tables: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
        for table in tables:
            found.update(table["asked"].to_pylist())
            for status in table["status"].to_pylist():
                counts[status] = counts.get(status, 0) + 1
            yield table

    with show_progress("audit") as on_progress:
        matches = find_samples(opened, asked, on_progress=on_progress)
        tables = counted(occurrence_tables(opened, matches, replacements, last=facts["upto"]))
        if out:
            write_tables(out, SCHEMA, tables)
        else:
            rows = [row for table in tables for row in table.to_pylist()]
    missing = [text for texts in asked.texts.values() for text in map(without_secrets, texts) if text not in found]
    facts |= {"asked": asked.size, "not_found": missing, "rows_by_status": dict(sorted(counts.items()))}
    facts |= {"views": len(opened.views), "out": out} if out else {"views": len(opened.views), "rows": rows}
    facts["not_told"] = replacements.not_told(facts["upto"])
    facts["jobs"] = _jobs(opened) if missing else []
    if json:
        say_json("audit", facts)
        return
    _show_rows(rows)
    _show_end(opened.history, facts)


def _jobs(opened: "Opened") -> list[str]:
    """Return the jobs that the sources were curated in, where they are there."""
    from headrace.trace.origin import origin_of

    found = [origin_of(source.dataset).explained for source in opened.sources]
    return list(dict.fromkeys(without_secrets(one.decision.job.url) for one in found if one is not None))


def _show_rows(rows: Sequence[dict[str, Any]]) -> None:
    by_sample: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_sample.setdefault((row["source"], row["shard"], row["key"]), []).append(row)
    for number, (name, found) in enumerate(by_sample.items()):
        if number == SHOWN_SAMPLES:
            print(f"... and {len(by_sample) - SHOWN_SAMPLES:,} samples more: give --out FILE.parquet, or --json")
            return
        source, shard, key = name
        print(cut_line(f"source {source}, shard {shard}, key {key}: {found[0]['url'] or 'no URL'}"))
        by_status: dict[str, list[int]] = {}
        for row in found:
            by_status.setdefault(row["status"], []).append(row["step"])
        for status, steps in by_status.items():
            print(f"  {status}{_steps(steps)}")


def _steps(steps: Sequence[int | None]) -> str:
    known = [f"{step:,}" for step in steps if step is not None]
    if not known:
        return ""
    more = f" and {len(known) - SHOWN_STEPS:,} more" if len(known) > SHOWN_STEPS else ""
    times = "once" if len(known) == 1 else f"{len(known):,} times"
    return f" {times}: step{'s' if len(known) > 1 else ''} {', '.join(known[:SHOWN_STEPS])}{more}"


def _show_end(history: "History", facts: dict[str, Any]) -> None:
    missing = facts["not_found"]
    for text in missing[:SHOWN_SAMPLES]:
        print(f"not in any dataset of the run: {cut_line(text)}")
    if len(missing) > SHOWN_SAMPLES:
        print(f"... and {len(missing) - SHOWN_SAMPLES:,} more that are in no dataset of the run")
    if missing and facts["jobs"]:  # it may have been dropped, as a copy of one that was kept
        say_next(["headrace", "why", facts["jobs"][0], missing[0]])
    if facts.get("out"):
        rows = ", ".join(f"{count:,} {status}" for status, count in facts["rows_by_status"].items()) or "none"
        print(printable(f"rows in {facts['out']}: {rows}"))
    _show_limits(history, facts)


def _show_limits(history: "History", facts: dict[str, Any]) -> None:
    """Say what the answer does not cover."""
    if history.is_run and facts["upto"] > history.done:
        print(f"the run has done {history.done:,} steps: what is beyond is planned")
    if history.is_run and not history.lines:
        print("the run kept no record of its steps: which samples were replaced, only its quarantine file says")
    not_told = facts["not_told"]
    if not_told:
        shown = ", ".join(map(str, list(not_told)[:8])) + (", ..." if len(not_told) > 8 else "")
        print(
            f"not known: which {sum(not_told.values()):,} samples were replaced in {len(not_told):,} steps ({shown}): "
            "the run has no quarantine file that says it; with --read these steps are read again"
        )
    elif history.is_run and history.done:
        say_next(["headrace", "trace", history.name, "--step", str(min(facts["upto"], history.done))])


def _say_tally(
    opened: "Opened", replacements: "Replacements", facts: dict[str, Any], *, out: str, top: int, json: bool
) -> None:
    import dataclasses

    from headrace.trace.tables import write_tables
    from headrace.trace.tally import SCHEMA, count_samples, new_tally, without_secret_urls

    tally = new_tally(opened, replacements, last=facts["upto"])

    def seen() -> "Iterator[pa.Table]":
        with show_progress("audit") as on_progress:
            for counted in count_samples(
                opened, replacements, last=facts["upto"], texts=bool(out or top), on_progress=on_progress
            ):
                tally.add(opened.sources[counted.source].config.name, counted)
                yield without_secret_urls(counted.seen) if out else counted.seen

    if out:
        write_tables(out, SCHEMA, seen())
    else:
        for _ in seen():
            pass
    facts |= {"global_batch": opened.history.global_batch, "not_told": replacements.not_told(facts["upto"])}
    facts["sources"] = {name: dataclasses.asdict(source) for name, source in tally.sources.items()}
    if out or top:
        facts |= {"num_hosts": tally.num_hosts, "hosts": tally.hosts(top)}
    facts |= {"out": out} if out else {}
    facts["taken_down"] = _taken_down(opened, replacements, facts["upto"])
    if json:
        say_json("audit", facts)
        return
    _show_tally(tally, facts)
    _show_taken_down(facts["taken_down"])
    if out:
        print(printable(f"one row a sample that was seen: {out}"))
    _show_limits(opened.history, facts)


def _taken_down(opened: "Opened", replacements: "Replacements", last: int) -> list[dict[str, Any]]:
    """Return the samples that were taken down since the run read them, and the steps that had them, by status."""
    from headrace.trace.find import taken_down
    from headrace.trace.occurrences import occurrence_tables

    found = dict(taken_down(opened))
    samples: dict[tuple[str, str, str], dict[str, Any]] = {}
    names = {(opened.sources[match.source].config.name, match.text): name for match, name in found.items()}
    for table in occurrence_tables(opened, found, replacements, last=last):
        for row in table.to_pylist():
            place = (row["source"], row["shard"], row["key"])
            name = names[row["source"], row["key"]]
            facts = {"source": place[0], "shard": place[1], "key": place[2], "take_down": name, "steps": {}}
            steps = samples.setdefault(place, facts)["steps"].setdefault(row["status"], [])
            steps += [] if row["step"] is None else [row["step"]]
    return list(samples.values())


def _show_taken_down(samples: Sequence[dict[str, Any]]) -> None:
    """Name the steps that had seen what was taken down since."""
    if samples:
        print(f"taken down since: {len(samples):,} samples")
    for one in samples[:SHOWN_SAMPLES]:
        told = "; ".join(f"{status}{_steps(steps)}" for status, steps in one["steps"].items())
        print(printable(f"  take-down {one['take_down']}, source {one['source']}, key {one['key']}: {told}"))
    if len(samples) > SHOWN_SAMPLES:
        print(f"... and {len(samples) - SHOWN_SAMPLES:,} more: give --json")


def _show_tally(tally: "Tally", facts: dict[str, Any]) -> None:
    samples = facts["upto"] * facts["global_batch"]
    print(f"{facts['upto']:,} steps of {facts['global_batch']:,} samples: {samples:,}")
    print(f"{'source':<20} {'samples':>14} {'seen':>14} {'times':>16} {'damaged':>10}  seen so often")
    for name, source in tally.sources.items():
        print(
            printable(
                f"{name:<20} {source.num_samples:>14,} {source.num_seen:>14,} {source.times:>16,} "
                f"{source.num_damaged:>10,}  {_often(source)}"
            )
        )
    if facts.get("hosts"):
        print(f"{'host':<40} {'samples':>14} {'times':>16}  ({tally.num_hosts:,} hosts)")
    for row in facts.get("hosts", ()):
        print(f"{one_line(row['host'] or '(no host)'):<40} {row['samples']:>14,} {row['times']:>16,}")


def _often(source: "SourceTally") -> str:
    often = sorted(source.by_times.items())
    more = f" and {len(often) - 6} other counts" if len(often) > 6 else ""
    return ", ".join(f"{times}x {samples:,}" for times, samples in often[:6]) + more
