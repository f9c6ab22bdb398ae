"""Write the pages that are made from the code.

    python docs/reference.py           # writes them
    python docs/reference.py --check   # exit code 1 if one is not up to date

recipe.md: every key of a recipe, a mixture and a run; cli.md: every command and option; modules.md: every module. A
field's text is the string below it in the source, an option's text is its help, a module's text is the first line of
its docstring: the pages cannot say anything but what the code says.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

import typer

from headrace.cli.app import app
from headrace.config_types import Extended, OneOf
from headrace.curation.recipe import Recipe
from headrace.pipeline.mixture import Mixture
from headrace.train.config import RunConfig

RECIPE = Path(__file__).with_name("recipe.md")
COMMANDS = Path(__file__).with_name("cli.md")
MODULES = Path(__file__).with_name("modules.md")
ROOT = Path(__file__).parents[1]

PAGES = (
    ("A recipe (`headrace curate RECIPE.yaml`)", Recipe),
    ("A mixture (`headrace stream MIXTURE.yaml`)", Mixture),
    ("A run (`headrace train RUN.yaml`)", RunConfig),
)

INTRODUCTION = """\
# Every key of the files you write

Made by `python docs/reference.py` from the typed configs. Unknown keys are refused; `key.path=value` on the command
line overrides a key. In a list, a word is the one item of that name or tag, a number its place:
`select.top_fraction.fraction=0.3`, `select.6.fraction=0.3`. A key without a default must be given.
"""


# Options that every command has.
EVERYWHERE = ("help", "verbose", "quiet")

CLI_INTRODUCTION = """\
# Every command

Made by `python docs/reference.py` from the commands themselves. A mistake of yours ends with one line and exit code 1;
an interrupt with 128 + the signal's number.

Every command takes `-v` (log what is done) and `-q` (no progress, no warnings), before or after its name.

What reports ends with numbers and the next command to type (`next: headrace ...`; `-q` leaves that out). With `--json`
it prints one JSON document on stdout and nothing else; progress and errors are on stderr.
"""


def main() -> None:
    """Write the pages, or with --check compare them."""
    for target, text in ((RECIPE, render()), (COMMANDS, render_commands()), (MODULES, render_modules())):
        if "--check" not in sys.argv[1:]:
            target.write_text(text)
        elif target.read_text() != text:
            sys.exit(f"docs/{target.name} is not what the code says: run python docs/reference.py")


def render_commands() -> str:
    """Return the page of the commands."""
    parts = [CLI_INTRODUCTION]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        help_text, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
        parts.append(f"## headrace {name}\n\n{help_text.strip()}\n")
        if example:
            parts.append(f"```\n{_examples(example)}\n```\n")
        arguments = [item for item in command.params if item.param_type_name == "argument"]
        options = [item for item in command.params if item.param_type_name == "option" and item.name not in EVERYWHERE]
        rows = [(f"`{item.metavar or item.name.upper()}`", item) for item in arguments]
        rows += [(" ".join(f"`{flag}`" for flag in (*item.opts, *item.secondary_opts)), item) for item in options]
        if rows:
            parts.append("| | |\n| --- | --- |")
            parts[-1] += "".join(f"\n| {flags} | {_cell(getattr(item, 'help', None))} |" for flags, item in rows) + "\n"
    return "\n".join(parts)


def _examples(text: str) -> str:
    """Return a line for each command; "What for: headrace ..." is told apart into a comment and the command."""
    first, *others = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    lines = [first]
    for paragraph in others:
        what, _, command = paragraph.partition(": ")
        lines += ["", f"# {what}", command]
    return "\n".join(lines)


MODULES_INTRODUCTION = """\
# Every module

Made by `python docs/reference.py`: the first line of each file, and the names that other files may use.
"""


def render_modules() -> str:
    """Return the page of the modules, floor by floor, from the ground up."""
    parts = [MODULES_INTRODUCTION]
    for floor in ("src/headrace", "shards", "curation", "pipeline", "train"):
        files = sorted(path for path in (ROOT / floor).rglob("*.py") if not _is_linked(path))
        folders = sorted({path.parent for path in files})
        for folder in folders:
            parts.append(f"## {folder.relative_to(ROOT)}\n")
            parts.append("| module | what it is | names |\n| --- | --- | --- |")
            for path in (file for file in files if file.parent == folder):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                first = (ast.get_docstring(tree) or "").split("\n\n")[0]
                names = [
                    f"`{item.name}`"
                    for item in tree.body
                    if isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_")
                ]
                parts[-1] += f"\n| `{path.name}` | {_cell(first)} | {', '.join(names)} |"
            parts[-1] += "\n"
    return "\n".join(parts)


def _is_linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents) or "__pycache__" in path.parts


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def render() -> str:
    """Return the whole page."""
    seen: set[type] = set()
    parts = [INTRODUCTION]
    for title, config in PAGES:
        parts.append(f"## {title}\n")
        parts.extend(_sections(config, seen))
    return "\n".join(parts)


def _sections(config: type, seen: set[type]) -> list[str]:
    if config in seen:
        return []
    seen.add(config)
    hints = typing.get_type_hints(config, include_extras=True)
    texts = _field_texts(config)
    lines = [
        f"### {config.__name__}\n",
        f"{inspect.getdoc(config)}\n",
        "| key | type | default | |",
        "| --- | --- | --- | --- |",
    ]
    for item in dataclasses.fields(config):
        cells = (
            f"`{item.name}`",
            f"`{_type(hints[item.name])}`".replace("|", "\\|"),
            _default(item),
            texts.get(item.name, ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    nested = [part for item in dataclasses.fields(config) for part in _dataclasses(hints[item.name])]
    return ["\n".join(lines) + "\n", *(section for part in nested for section in _sections(part, seen))]


def _field_texts(config: type) -> dict[str, str]:
    texts = {item.name: item.metadata["text"] for item in dataclasses.fields(config) if "text" in item.metadata}
    if texts:  # its class was made, not written; a base was
        return _field_texts(config.__bases__[0]) | texts
    for base in config.__bases__:  # what configs have in common is said there
        if dataclasses.is_dataclass(base):
            texts |= _field_texts(base)
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[ast.unparse(before.target)] = " ".join(str(after.value.value).split()).replace("|", "\\|")
    return texts


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        made = [mark.make() for mark in args[1:] if isinstance(mark, Extended)]
        if made:
            return _type(made[0])
        tables = [mark.table() for mark in args[1:] if isinstance(mark, OneOf)]
        return " | ".join(choice.__name__ for choice in tables[0].values()) if tables else _type(args[0])
    if origin is typing.Literal:
        return " | ".join(str(value) for value in args)
    if origin is tuple:
        return f"list of {_type(args[0])}" if args[-1] is Ellipsis else "[" + ", ".join(map(_type, args)) + "]"
    if origin is dict:
        return f"mapping of {_type(args[1])}"
    if args:
        return " | ".join(_type(arg) for arg in args)
    return "null" if hint is type(None) else str(getattr(hint, "__name__", hint))


def _default(item: "dataclasses.Field[Any]") -> str:
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
        return f"`{value!r}`" if not dataclasses.is_dataclass(value) else "its defaults"
    if item.default is dataclasses.MISSING:
        return "**required**"
    return "null" if item.default is None else f"`{item.default!r}`".replace("|", "\\|")


def _dataclasses(hint: Any) -> list[type]:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, OneOf):
            return list(mark.table().values())
        if isinstance(mark, Extended):
            return [mark.make()]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for arg in typing.get_args(hint) for found in _dataclasses(arg)]


if __name__ == "__main__":
    main()
