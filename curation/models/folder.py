"""Where known model files lie: `HEADRACE_MODELS`, else `headrace/models` in the user's cache (`XDG_CACHE_HOME`)."""

import os
from pathlib import Path

from headrace import files
from headrace.curation.models.known import KNOWN_MODELS, KnownModel

ENVIRONMENT = "HEADRACE_MODELS"


def models_folder() -> Path:
    """Return the folder of known models; it need not be there."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "")
    # Source: XDG Base Directory Specification: a relative path counts as none.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "headrace" / "models"


def place_of(model: KnownModel) -> Path:
    """Return where a known model lies once it is there."""
    return models_folder() / model.file


def model_url(text: str) -> str:
    """Return the file that a recipe means: of a known name the file in the folder of models, else `text` itself.

    Raises ValueError if a known one is not there, or is not the file that it should be.
    """
    model = KNOWN_MODELS.get(text)
    if model is None:
        return text
    place = place_of(model)
    if not place.is_file():
        raise ValueError(f"the model {text} is not on this machine ({place}); run: headrace models get {text}")
    check_size(model, place)
    return str(place)


def check_size(model: KnownModel, place: Path) -> None:
    """Raise ValueError if a known file was cut or replaced; its sum was checked when it was put there."""
    size = place.stat().st_size
    if size != model.num_bytes:
        raise ValueError(
            f"{place} has {size} bytes, {model.name} has {model.num_bytes}; remove it and run: "
            f"headrace models get {model.name}"
        )


def is_whole(model: KnownModel, place: Path) -> bool:
    """True if the file there has the sum that it must have."""
    return place.is_file() and place.stat().st_size == model.num_bytes and files.sha256_of(str(place)) == model.sha256
