"""Ctrl-C and SIGTERM: a command lets go of owners and locks, ends its workers, says one line and exits with 128 + N.

What the handler raises must be a SystemExit: asyncio swallows most other exceptions of a handler, and Typer answers a
KeyboardInterrupt itself. A second signal ends the process at once.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from headrace.text import one_line


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """End what runs inside with one line when a signal asks for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)
        logging.getLogger("asyncio").disabled = True  # that its tasks did not end by themselves is no news
        # Nor is what a transport that was being made says when it is thrown away.
        sys.unraisablehook = lambda _: None
        raise SystemExit(128 + number)

    previous: dict[int, Any] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        # A shell starts background jobs with SIGINT ignored; so it stays.
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException:  # whatever the SystemExit became on its way up: DuckDB makes a RuntimeError of it
        if not caught:
            raise
        print(f"headrace: stopped by {signal.Signals(caught[0]).name}", file=sys.stderr)
        raise SystemExit(128 + caught[0]) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def leaving_lost_ranks() -> Iterator[None]:
    """End the process with one line where what runs inside has lost the other processes."""
    from headrace.train.parallel.ranks import RankError

    try:
        yield
    except RankError as error:
        print(f"headrace: {one_line(str(error))}", file=sys.stderr)
        sys.stdout.flush()
        # The usual end would wait for the lost ranks, or abort in the destructors of the library that waits for them.
        os._exit(128 + error.signal_number if error.signal_number else 1)
