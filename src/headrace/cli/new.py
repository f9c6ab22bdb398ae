"""`headrace new`: a commented file to begin with, one of the repository's examples, which the wheel holds too."""

from enum import StrEnum
from typing import Annotated

import typer

from headrace.text import known_words

# What is written: kind -> file of examples/. The first kind of each is the one that `new` writes without --kind.
FILES = {
    "recipe": {"first": "first.yaml", "dfn2b": "dfn2b.yaml"},
    "mixture": {"aim": "mixture.yaml"},
    "run": {
        "aim": "aim-cifar10.yaml",
        "aim-laptop": "aim-laptop.yaml",
        "aim-0.6B": "aim-0.6B.yaml",
        "aim-0.6B-l3m": "aim-0.6B-l3m.yaml",
        "aim-1B": "aim-1B.yaml",
        "aim-3B": "aim-3B.yaml",
        "aim-7B": "aim-7B.yaml",
        "clip": "clip-tiny.yaml",
        "clip-flickr8k": "clip-flickr8k.yaml",
        "clip-filter": "clip-filter.yaml",
        "clip-datacomp-small": "clip-datacomp-small.yaml",
        "clip-datacomp-medium": "clip-datacomp-medium.yaml",
        "clip-datacomp-large": "clip-datacomp-large.yaml",
        "clip-datacomp-xlarge": "clip-datacomp-xlarge.yaml",
        "moco": "moco-cifar10.yaml",
        "simclr": "simclr-cifar10.yaml",
        "byol": "byol-cifar10.yaml",
        "swav": "swav-cifar10.yaml",
        "moco-vit-s": "moco-vit-s.yaml",
        "moco-vit-b": "moco-vit-b.yaml",
        "moco-resnet50": "moco-resnet50.yaml",
        "simclr-vit-b": "simclr-vit-b.yaml",
        "byol-vit-b": "byol-vit-b.yaml",
        "swav-vit-b": "swav-vit-b.yaml",
        "simmim": "simmim-cifar10.yaml",
        "simmim-swinv2": "simmim-swinv2.yaml",
        "simmim-vit-b": "simmim-vit-b.yaml",
        "supervised": "supervised-tiny.yaml",
        "vit": "vit-cifar10.yaml",
        "vit-b-jft-like": "vit-b-jft-like.yaml",
        "vit-l-jft-like": "vit-l-jft-like.yaml",
        "vit-giant-jft-like": "vit-giant-jft-like.yaml",
        "vit-gigantic-jft-like": "vit-gigantic-jft-like.yaml",
    },
    "suite": {"aim15": "suite-aim15.yaml"},
}

NEXT = {
    "recipe": "headrace curate {file} --dry-run",
    "mixture": "headrace stream {file}",
    "run": "headrace train {file} --dry-run",
    "suite": "headrace probe RUN --suite {file} --dry-run",
}

KINDS = "; ".join(f"{what}: {', '.join(kinds)}" for what, kinds in FILES.items())


class What(StrEnum):
    """The files that a user writes."""

    RECIPE = "recipe"
    MIXTURE = "mixture"
    RUN = "run"
    SUITE = "suite"


def new_command(
    what: Annotated[What, typer.Argument(help="What kind of file.")],
    file: Annotated[str, typer.Argument(help="The file to write; an existing one is never replaced.")],
    kind: Annotated[str, typer.Option("--kind", help=f"Which one. {KINDS}. The first is the default.")] = "",
) -> None:
    """Write a commented recipe, mixture, run or suite that works once its paths are yours.

    Example: headrace new recipe first.yaml
    """
    from pathlib import Path

    text = template(what.value, kind).replace(f"examples/{_name(what.value, kind)}", file)
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise ValueError(f"{file} exists already; name another file, or remove it") from error
    print(f"wrote {file}; put your paths into it, then: {NEXT[what.value].format(file=file)}")


def template(what: str, kind: str = "") -> str:
    """Return the text of a file to begin with. Raises ValueError naming the kinds there are."""
    from importlib import resources

    return (resources.files("headrace") / "examples" / _name(what, kind)).read_text(encoding="utf-8")


def _name(what: str, kind: str) -> str:
    kinds = FILES[what]
    if kind and kind not in kinds:
        raise ValueError(f"--kind: unknown {kind!r} of a {what}; {known_words(kind, kinds)}")
    return kinds[kind or next(iter(kinds))]
