"""What a command says at its end: numbers and the next command to type, or with `--json` the numbers alone."""

import dataclasses
import json as json_module
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headrace.cli.verbosity import is_quiet
from headrace.text import one_line, without_secrets

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, one object a line, and nothing else on stdout.")
]


def say_json(command: str, result: Any) -> None:
    """Print a summary, a dataclass or a mapping, as one line of JSON; `command` says whose it is."""
    facts = (
        dataclasses.asdict(result)
        if dataclasses.is_dataclass(result) and not isinstance(result, type)
        else dict(result)
    )
    print(json_module.dumps({"command": command, **facts}, allow_nan=False, default=str))


def say_next(*commands: Sequence[str]) -> None:
    """Print what one would type next, each a list of words; nothing after `-q`."""
    if not is_quiet():
        for words in commands:
            print(f"next: {one_line(without_secrets(shlex.join(words)))}")
