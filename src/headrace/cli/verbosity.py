"""How much a command says on stderr: `-v` what is done, `-q` errors only. Both go before or after the subcommand.

What a command was asked for, its summary included, goes to stdout and is printed always.
"""

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from headrace.shards.logs import PACKAGE, OneLine

FORMAT = "%(levelname)s %(name)s: %(message)s"

VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Errors and the summary only: no progress, no warnings.")
]


class StderrHandler(logging.Handler):
    """Lines on the stderr of the moment: a live bar puts itself in its place."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(OneLine(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr, flush=True)


def set_verbosity(*, verbose: bool = False, quiet: bool = False) -> None:
    """Log to stderr: warnings and errors; with `verbose` what is done too, with `quiet` errors only."""
    if verbose and quiet:
        raise ValueError("--verbose and --quiet contradict each other: give one of them")
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    for handler in _handlers():
        logging.getLogger().removeHandler(handler)
    logging.getLogger().addHandler(StderrHandler(level))
    logging.getLogger(PACKAGE).setLevel(level)


def is_quiet() -> bool:
    """True after `-q`."""
    return any(handler.level > logging.WARNING for handler in _handlers())


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with the options `-v` and `-q`; what was said before the subcommand counts too."""

    @functools.wraps(command)
    def speaking(*arguments: Any, verbose: bool, quiet: bool, **options: Any) -> None:
        if verbose or quiet:
            set_verbosity(verbose=verbose or _is_verbose(), quiet=quiet or is_quiet())
        command(*arguments, **options)

    signature = inspect.signature(command)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("verbose", VerboseOption), ("quiet", QuietOption))
    ]
    # Typer reads the options of a command from its signature.
    speaking.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    return speaking


def _is_verbose() -> bool:
    return any(handler.level < logging.WARNING for handler in _handlers())


def _handlers() -> list[logging.Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, StderrHandler)]
