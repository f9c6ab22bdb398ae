"""`headrace export`: trained weights in the form that another program loads."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.result import JsonOption, say_json, say_plan
from headrace.text import printable


def export_command(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Run folder, checkpoint folder, or exported or released file; of several the mean of their weights.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")],
    form: Annotated[
        str, typer.Option("--format", help="safetensors, torch, ml-aim, timm or open_clip.")
    ] = "safetensors",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Write the weights of a run for ml-aim, timm, open_clip, or as one file of tensors.

    What is written can be read back: by `init_from`, and all but open_clip's form by `headrace probe` and this command.

    Example: headrace export runs/a --format timm --out exported/a

    The mean of two fine-tuned models: headrace export runs/a runs/b --out runs/mean
    """
    from headrace.train.runs.formats import FORMATS, check_export, export_weights
    from headrace.train.runs.weights import averaged, read_weights

    weights = averaged([read_weights(checkpoint) for checkpoint in checkpoints])
    if dry_run:
        check_export(weights, form=form, dtype=dtype)
        mean = f"the mean of {len(checkpoints)}, the first " if len(checkpoints) > 1 else ""
        what = f"export {mean}{weights.path}, step {weights.step}, {len(weights.tensors)} tensors, in {dtype}"
        say_plan("export", [what, f"{form}: {FORMATS[form].says}", f"write into {out}"], json=json)
        return
    done = export_weights(weights, out, form=form, dtype=dtype)
    if json:
        say_json("export", done)
        return
    print(printable(f"{done.folder}: {done.tensors} tensors, {done.bytes:,} bytes"))
    print(printable(f"load it: {done.load}"))
