"""A life sign on stderr: a live bar on a terminal, elsewhere one plain line every 30 seconds and one at the end.

A line comes from a thread, so that it comes too while the driver is busy with one long statement.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.cli.verbosity import is_quiet
from headrace.shards.progress import OnProgress, Progress, no_progress
from headrace.text import one_line

LINE_SECONDS = 30.0
SECONDS_VARIABLE = "HEADRACE_PROGRESS_SECONDS"
SLOW_SECONDS = 1.0
"""A host that answers faster is not named."""
SHOWN_HOSTS = 3
SHOWN_CLASSES = 6
REFRESHES_PER_SECOND = 4


@contextlib.contextmanager
def show_progress(name: str) -> Iterator[OnProgress]:
    """Yield the function that takes the progress of `name`, a stage or command."""
    if is_quiet():
        yield no_progress
        return
    console = Console(stderr=True)
    shown = _Bar(name) if console.is_terminal else _Lines(name, _line_seconds())
    live = Live(
        get_renderable=shown.render,
        console=console,
        transient=True,
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),  # else what is printed meanwhile would go to stderr, past a `> FILE`
    )
    with live if isinstance(shown, _Bar) else shown:
        yield shown.take


def _line_seconds() -> float:
    text = os.environ.get(SECONDS_VARIABLE, "")
    try:
        seconds = float(text or LINE_SECONDS)
    except ValueError as error:
        raise ValueError(f"{SECONDS_VARIABLE}: expected seconds between two lines, got {text!r}") from error
    if not seconds > 0:
        raise ValueError(f"{SECONDS_VARIABLE}: expected more than 0 seconds, got {text!r}")
    return seconds


class _Shown:
    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = time.monotonic()
        self._progress: Progress | None = None

    def take(self, progress: Progress) -> None:
        """Keep what is to be shown."""
        self._progress = progress

    def _seconds(self) -> float:
        return time.monotonic() - self._begun


class _Bar(_Shown):
    def render(self) -> RenderableType:
        """Return the bar as it is now."""
        progress = self._progress
        if progress is None:
            return Text(f"{self._name}  {_clock(self._seconds())}")
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=progress.total or None, completed=progress.done, width=30)
        row.add_row(self._name, bar, Text(numbers(progress, self._seconds())))
        details = troubles(progress)
        return Group(row, Text(details, style="dim", no_wrap=True, overflow="ellipsis")) if details else row


class _Lines(_Shown):
    """Lines every `every` seconds, and a last one if the run ended well."""

    def __init__(self, name: str, every: float) -> None:
        super().__init__(name)
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="progress", daemon=True)

    def __enter__(self) -> "_Lines":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and self._progress is not None and self._progress.total:
            self._print(ended=True)

    def render(self) -> RenderableType:
        """Return nothing: lines are printed."""
        return ""

    def _speak(self) -> None:
        while not self._ended.wait(self._every):
            self._print(ended=False)

    def _print(self, *, ended: bool) -> None:
        progress = self._progress
        if progress is None:
            print(f"{self._name}: {_clock(self._seconds())}", file=sys.stderr, flush=True)
            return
        details = troubles(progress, hosts=not ended)
        text = numbers(progress, self._seconds(), ended=ended) + (f"; {details}" if details else "")
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)


def numbers(progress: Progress, seconds: float, *, ended: bool = False) -> str:
    """Return how far it is: units, rows, bytes, rates, time."""
    parts = [f"{progress.done:,}/{progress.total:,} {progress.noun}"]
    rates = {name: count / seconds for name, count in progress.counts.items()} if ended and seconds else progress.rates
    main = progress.main
    if main is not None:
        expected = progress.expected.get(main, 0)
        of = f" of {expected:,}" if expected and not ended else ""
        parts.append(f"{progress.counts.get(main, 0):,}{of} {main}")
    if "bytes" in progress.counts:
        parts.append(_size(progress.counts["bytes"]))
    if main is not None:
        parts.append(f"{rates.get(main, 0):,.{0 if rates.get(main, 0) >= 10 else 1}f} {main}/s")
    if "bytes" in progress.counts:
        parts.append(f"{_size(rates.get('bytes', 0))}/s")
    parts.append(_clock(seconds))
    if progress.left_seconds is not None and not ended:
        parts.append(f"about {_clock(progress.left_seconds)} left")
    return ", ".join(parts)


def troubles(progress: Progress, *, hosts: bool = True) -> str:
    """Return failures by class, and the slowest hosts."""
    parts = []
    if progress.failures:
        classes = sorted(progress.failures.items(), key=lambda item: (-item[1], item[0]))
        more = f", {len(classes) - SHOWN_CLASSES} other classes" if len(classes) > SHOWN_CLASSES else ""
        listed = ", ".join(f"{name} {count:,}" for name, count in classes[:SHOWN_CLASSES])
        parts.append(f"failed {sum(progress.failures.values()):,}: {listed}{more}")
    slow = [item for item in sorted(progress.hosts.items(), key=lambda item: -item[1]) if item[1] >= SLOW_SECONDS]
    if slow and hosts:
        parts.append("slowest hosts: " + ", ".join(f"{host} {seconds:.0f} s" for host, seconds in slow[:SHOWN_HOSTS]))
    return one_line("; ".join(parts))


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
