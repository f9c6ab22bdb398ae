"""`headrace models`: the model files that headrace knows by name, and getting them."""

from enum import StrEnum
from typing import Annotated

import typer

from headrace.cli.result import JsonOption, say_json


class Action(StrEnum):
    """What is done with known models."""

    LIST = "list"
    GET = "get"
    PATH = "path"


def models_command(
    action: Annotated[Action, typer.Argument(help="list them, get one, or print the path of one that is there.")],
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which one.")] = "",
    taken_from: Annotated[
        str,
        typer.Option("--from", metavar="FILE|URL", help="Take it from here, not from its source; the sum is checked."),
    ] = "",
    json: JsonOption = False,
) -> None:
    """List known model files, or get one into HEADRACE_MODELS (default: headrace/models in your cache), sum checked.

    Example: headrace models get centerface
    """
    from headrace.curation.models.folder import model_url
    from headrace.curation.models.get import get_model
    from headrace.curation.models.known import known_model

    if action is Action.LIST:
        if name or taken_from:
            raise ValueError("`headrace models list` takes no name and no --from")
        _list(json=json)
        return
    if not name:
        raise ValueError(f"which model? headrace models {action} NAME; `headrace models list` says which there are")
    if taken_from and action is Action.PATH:
        raise ValueError("--from goes with `headrace models get`")
    known_model(name)
    path = get_model(name, taken_from=taken_from) if action is Action.GET else model_url(name)
    if json:
        say_json("models", {"name": name, "path": str(path)})
    else:
        print(path)


def _list(*, json: bool) -> None:
    from headrace.curation.models.folder import models_folder, place_of
    from headrace.curation.models.known import KNOWN_MODELS, ByHand

    rows = [
        {
            "name": model.name,
            "there": place_of(model).is_file(),
            "purpose": model.purpose,
            "source": str(model.source),
            "licence": model.licence,
            "megabytes": model.num_bytes / 1e6,
            "sha256": model.sha256,
        }
        for model in KNOWN_MODELS.values()
    ]
    if json:
        say_json("models", {"folder": str(models_folder()), "models": rows})
        return
    for row in rows:
        by_hand = isinstance(KNOWN_MODELS[str(row["name"])].source, ByHand)
        state = "here" if row["there"] else f"headrace models get {row['name']}" + " --from FILE" * by_hand
        print(f"{row['name']:<12} {row['megabytes']:>7.1f} MB  {row['licence']}  [{state}]")
        print(f"{'':<12} {row['purpose']}")
        print(f"{'':<12} {row['source']}; sha256 {row['sha256']}")
    print(f"they lie in {models_folder()}")
