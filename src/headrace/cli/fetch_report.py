"""`headrace fetch-report`: what of a list is alive, and what has changed between two runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.result import JsonOption, say_json
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.curation.fetch.alive import Change

Line = tuple[str, ...]


def fetch_report_command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Folder of a job, or its report/fetch.json.")],
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="A later run to compare with: a job, or its report/fetch.json."),
    ] = None,
    hosts: Annotated[int, typer.Option("--hosts", min=0, help="Hosts to show.")] = 20,
    json: JsonOption = False,
) -> None:
    """Show what of a list is alive: by class, by host, by the year of the list (input.date_column).

    With two jobs the shares side by side, hosts with the largest change first.

    Example: headrace fetch-report jobs/2025 jobs/2026
    """
    import dataclasses

    from headrace.curation.fetch.alive import compare, read_alive

    report = read_alive(job)
    if other is None:
        if json:
            say_json("fetch-report", report)
        else:
            _print(_lines(report, hosts))
        return
    changes = compare(report, read_alive(other))
    if json:
        say_json("fetch-report", {"changes": [dataclasses.asdict(change) for change in changes]})
    else:
        _print(_change_lines(changes, hosts))


def _lines(report: dict[str, Any], num_hosts: int) -> list[Line]:
    rows, alive = report["rows"], report["alive"]
    lines: list[Line] = [("", "rows", "alive", "share", "most failures"), _line("all", report)]
    lines += [(name, str(count), "", _percent(count, rows), "") for name, count in _ordered(report["classes"])]
    if report["reused"] or report["retried"]:
        lines += [(name, str(report[name]), "", _percent(report[name], alive), "") for name in ("reused", "retried")]
    for year, item in report["years"].items():
        lines.append(_line(f"year {year}", item))
    lines += [_line(item["host"], item) for item in report["hosts"][:num_hosts]]
    left = report["num_hosts"] - min(num_hosts, len(report["hosts"]))
    return [*lines, (f"{left} more hosts", "", "", "", "")] if left > 0 else lines


def _line(name: str, item: dict[str, Any]) -> Line:
    worst = ", ".join(f"{kind} {count}" for kind, count in _ordered(item["classes"])[:3])
    return name, str(item["rows"]), str(item["alive"]), _percent(item["alive"], item["rows"]), worst


def _ordered(classes: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(classes.items(), key=lambda pair: (-pair[1], pair[0]))


def _change_lines(changes: "list[Change]", num_hosts: int) -> list[Line]:
    lines: list[Line] = [("", "rows before", "after", "share before", "after", "points")]
    shown = [change for change in changes if change.kind != "host"]
    for change in [*shown, *[change for change in changes if change.kind == "host"][:num_hosts]]:
        name = f"year {change.name}" if change.kind == "year" else change.name
        shares = ["" if share is None else f"{share:.1%}" for share in (change.before, change.after)]
        known = change.before is not None and change.after is not None
        points = f"{100 * change.difference:+.1f}" if known else ""
        lines.append((name, str(change.rows_before), str(change.rows_after), *shares, points))
    return lines


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _print(lines: list[Line]) -> None:
    shown = [tuple(printable(cell) for cell in line) for line in lines]
    widths = [max(len(line[column]) for line in shown) for column in range(len(shown[0]))]
    for line in shown:
        cells = [
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
