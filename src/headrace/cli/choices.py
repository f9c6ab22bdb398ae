"""What the commands share that list a table of choices: a line each, the first one of the docstring."""

import inspect
import json as json_module
from collections.abc import Mapping
from types import MappingProxyType

from headrace.text import one_line


def show_choices(choices: Mapping[str, object], *, json: bool, notes: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print name and first line of the docstring of every choice; with `json` one list with an object a choice.

    `notes` stand behind that line, by name.
    """
    texts = {
        name: one_line(f"{(inspect.getdoc(choice) or '').partition(chr(10))[0]} {notes.get(name, '')}").strip()
        for name, choice in choices.items()
    }
    if json:
        print(json_module.dumps([{"name": name, "text": text} for name, text in texts.items()], indent=1))
        return
    width = max(map(len, texts))
    for name, text in texts.items():
        print(f"{name:<{width}}  {text}")
