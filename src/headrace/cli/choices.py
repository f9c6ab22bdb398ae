"""What the commands share that list a table of choices: a line each, the first one of the docstring."""

import inspect
from collections.abc import Mapping

from headrace.text import one_line


def show_choices(choices: Mapping[str, object]) -> None:
    """Print name and first line of the docstring of every choice."""
    width = max(map(len, choices))
    for name, choice in choices.items():
        first, _, _ = (inspect.getdoc(choice) or "").partition("\n")
        print(f"{name:<{width}}  {one_line(first)}")
