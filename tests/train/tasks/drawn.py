"""Small files that the tests of tasks write, small models, and the command as a function."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from headrace.cli.app import app

TRUNK: dict[str, Any] = {
    "kind": "supervised",
    "num_classes": 3,
    "model": "tiny",
    "patch": 8,
    "width": 48,
    "depth": 3,
    "heads": 4,
}
SMALL = ["--image-size", "64", "objective.drop_path=0", "device=cpu"]
SEGMENT = ["--task", "segment", "--batch", "16", *SMALL, "objective.head=linear"]
DETECT = ["--task", "detect", "--batch", "8", *SMALL, "objective.width=32", "objective.anchors=64"]
DETECT += ["objective.regions=32", "objective.proposals=100", "objective.most=10"]


def png(numbers: NDArray[np.generic], mode: str = "") -> bytes:
    """Return a PNG of these numbers; with mode P its palette is of colours that are no numbers."""
    image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette([(7 * place + 90) % 256 for place in range(768)])
    elif mode:
        image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def finetune(*words: object) -> str:
    """Run the command and return what it prints; a refusal is raised."""
    done = CliRunner().invoke(app, ["finetune", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout
