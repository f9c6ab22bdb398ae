"""`headrace faces evaluate`: what face detectors find of photographs whose faces are marked."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, say_json
from headrace.text import cut_line

if TYPE_CHECKING:
    from headrace.curation.annotate.annotators.faces import FacesConfig
    from headrace.curation.annotate.evaluation.tally import FindFaces


class Action(StrEnum):
    """What is done."""

    EVALUATE = "evaluate"


def faces_command(
    action: Annotated[Action, typer.Argument(help="What to do.")],  # noqa: ARG001 - there is one so far
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder of images, or a tar.")],
    annotations: Annotated[
        str,
        typer.Option("--annotations", metavar="FILE", help="WIDER's wider_face_val_bbx_gt.txt, or JSON of boxes."),
    ] = "",
    detectors: Annotated[
        list[str] | None,
        typer.Option("--detector", metavar="SPEC", help="NAME or NAME:MODEL or NAME:MODEL:SCORE; may be repeated."),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", metavar="RECIPE.yaml", help="Its annotate.faces, too.")] = "",
    shrink: Annotated[
        float, typer.Option("--shrink", min=1, help="Make the images smaller by this factor first: for small faces.")
    ] = 1,
    every: Annotated[int, typer.Option("--every", min=1, help="Take every Nth image only.")] = 1,
    out: Annotated[str, typer.Option("--out", metavar="FILE.json", help="Write the numbers here.")] = "",
    json: JsonOption = False,
) -> None:
    """Measure recall by size of face, and boxes on no marked face, for each detector; of two also union and agreement.

    Without --annotations the boxes are counted: as many are false as hold no face. Nothing is written but --out.

    Example: headrace faces evaluate photos --annotations boxes.json --detector centerface --detector haar
    """
    import json as json_module

    from headrace import atomic
    from headrace.curation.annotate.evaluation.tally import evaluate

    asked = _asked(detectors or (), recipe)
    with show_progress("faces") as on_progress:
        tallies = evaluate(_images(images, annotations, every, on_progress), _finders(asked), shrink=shrink)
    facts = {
        "images": images,
        "annotations": annotations,
        "shrink": shrink,
        "detectors": {k: v.facts() for k, v in tallies.items()},
    }
    if not next(iter(facts["detectors"].values()))["images"]:  # type: ignore[attr-defined]
        raise ValueError(f"{images}: no image could be read")
    if out:
        atomic.write_atomic(out, (json_module.dumps(facts, indent=1) + "\n").encode())
    if json:
        say_json("faces", facts)
    else:
        _show(facts["detectors"])  # type: ignore[arg-type]


def _asked(specs: "list[str] | tuple[str, ...]", recipe: str) -> "dict[str, FacesConfig]":
    """Return name -> config. Raises ValueError for a detector that is not known or whose file is not there."""
    from headrace import urlpath
    from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig
    from headrace.curation.recipe import load_recipe

    names = [spec.partition(":")[0] for spec in specs]
    labels = names if len(set(names)) == len(names) else specs
    asked = {label: _config(spec) for label, spec in zip(labels, specs, strict=True)}
    if recipe:
        faces: object = getattr(load_recipe(recipe).annotate, "faces", None)
        if not isinstance(faces, FacesConfig):
            raise ValueError(f"{recipe}: annotate.faces is null; nothing to evaluate")
        asked[f"recipe {urlpath.basename(recipe)}"] = faces
    asked = asked or {"centerface": FacesConfig()}
    for config in asked.values():
        FaceBoxes(config).files()
    return asked


def _config(spec: str) -> "FacesConfig":
    from headrace.config import build_config
    from headrace.curation.annotate.annotators.faces import FacesConfig

    name, _, rest = spec.partition(":")
    model, _, score = rest.rpartition(":") if _is_number(rest.rpartition(":")[2]) else (rest, "", "")
    data: dict[str, Any] = {"detector": name, **({"model": model} if model else {})}
    if name in ("yunet", "scrfd") and not model:
        data["model"] = name
    try:
        return build_config(FacesConfig, {**data, **({"min_score": float(score)} if score else {})})
    except ValueError as error:
        raise ValueError(f"--detector {spec}: {error}") from error


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _finders(asked: "Mapping[str, FacesConfig]") -> "dict[str, FindFaces]":
    """Return the detectors, and what two or more of them find together."""
    from functools import partial

    from headrace.curation.annotate.annotators.faces import find_faces
    from headrace.curation.annotate.detectors.combine import combined

    found: dict[str, FindFaces] = {name: partial(find_faces, config=config) for name, config in asked.items()}
    strong = [find for name, find in found.items() if not asked[name].is_weak]
    if len(strong) > 1:
        found["union"] = lambda pixels: combined([find(pixels) for find in strong], "union")
        found["agreement"] = lambda pixels: combined([find(pixels) for find in strong], "agreement")
    return found


def _images(url: str, annotations: str, every: int, on_progress: Any) -> Iterator[Any]:
    """Yield (upright pixels, marked faces) of every image that can be read; the others are said and left out."""
    from headrace.curation.annotate.evaluation.known_boxes import read_marked
    from headrace.curation.annotate.evaluation.photographs import nothing_marked, photographs
    from headrace.shards.progress import Progress

    marked = read_marked(annotations) if annotations else None
    for done, item in enumerate(photographs(url, marked, every=every)):
        on_progress(Progress(done=done, total=item.total, noun="images"))
        if item.pixels is None:
            typer.echo(cut_line(f"left out: {item.name}: {item.error}"), err=True)
            continue
        yield item.pixels, nothing_marked() if marked is None else marked[item.name]


def _show(detectors: Mapping[str, Any]) -> None:
    width = max(map(len, detectors))
    sizes = list(next(iter(detectors.values()))["by_size"])
    print(f"{'':<{width}}  found/faces  " + "".join(f"{size + ' px':>12}" for size in sizes) + "  boxes  extra  CPU ms")
    for name, facts in detectors.items():
        bins = ((part["found"], part["faces"]) for part in facts["by_size"].values())
        cells = "".join(f"{f'{found}/{faces}' if faces else '-':>12}" for found, faces in bins)
        print(
            cut_line(f"{name}").ljust(width)
            + f"  {facts['found']:>5}/{facts['faces']:<5}  {cells}  {facts['boxes']:>5}  {facts['extra_boxes']:>5}  "
            + f"{facts['cpu_ms_per_image']:>6}"
        )
    print("extra: boxes on no marked face, which may show a face that nobody marked")
