"""What a command says at its end: numbers and the next command to type, or with `--json` the numbers alone."""

import dataclasses
import json as json_module
import shlex
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from headrace.cli.verbosity import is_quiet
from headrace.text import printable, without_secrets

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document, and nothing else on stdout.")
]


NEW_MIXTURE = ["headrace", "new", "mixture", "mixture.yaml"]


def say_json(command: str, result: Any) -> None:
    """Print a summary, a dataclass or a mapping, as one line of JSON; `command` says whose it is."""
    print(json_module.dumps(facts_of(command, result), allow_nan=False, default=str))


def facts_of(command: str, result: Any) -> dict[str, Any]:
    """Return a summary as what `say_json` prints."""
    is_summary = dataclasses.is_dataclass(result) and not isinstance(result, type)
    return {"command": command, **(dataclasses.asdict(result) if is_summary else result)}


def say_plan(command: str, lines: Iterable[str], *, json: bool) -> None:
    """Print what `--dry-run` found, line by line; with `json` one object that holds the lines."""
    if json:
        say_json(command, {"plan": list(lines)})
        return
    for line in lines:
        print(printable(line))


def say_next(*commands: Sequence[str]) -> None:
    """Print what one would type next, each a list of words; nothing after `-q`."""
    if not is_quiet():
        for words in commands:
            print(f"next: {printable(without_secrets(shlex.join(words)))}")


def after_datasets(*datasets: str, index_dir: str = "") -> list[list[str]]:
    """Return what one would type after datasets were written."""
    place = ["--index-dir", index_dir] if index_dir else []
    return [*(["headrace", "verify", dataset, *place, "--decode"] for dataset in datasets), NEW_MIXTURE]
