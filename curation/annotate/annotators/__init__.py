"""The annotators, one a file, and this table: name in the recipe -> the annotator, in the order of running."""

from headrace.curation.annotate.annotator import Annotator
from headrace.curation.annotate.annotators.caption import CaptionFacts
from headrace.curation.annotate.annotators.clip import ClipScore
from headrace.curation.annotate.annotators.faces import FaceBoxes
from headrace.curation.annotate.annotators.hashes import Hashes
from headrace.curation.annotate.annotators.image import ImageFacts
from headrace.curation.annotate.annotators.quality import Quality
from headrace.curation.annotate.annotators.unsafe_image import UnsafeImage
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText
from headrace.extensions import with_extensions

ANNOTATORS: dict[str, type[Annotator]] = {
    "image": ImageFacts,
    "hashes": Hashes,
    "quality": Quality,
    "caption": CaptionFacts,
    "clip": ClipScore,
    "unsafe_text": UnsafeText,
    "unsafe_image": UnsafeImage,
    "faces": FaceBoxes,
}


def known_annotators() -> dict[str, type[Annotator]]:
    """Return `ANNOTATORS` with those of extensions. Raises ValueError for one that does not fit in."""
    table = with_extensions("annotators", ANNOTATORS)
    makers: dict[str, str] = {}
    for name, kind in table.items():
        if not (isinstance(kind, type) and issubclass(kind, Annotator)) or kind.name != name:
            raise ValueError(
                f"the annotator {name!r} of an extension must be a subclass of Annotator with this name, got {kind!r}"
            )
        for column in kind.columns.names:
            maker = makers.setdefault(column.lower(), name)
            if maker != name:
                raise ValueError(f"annotators {maker!r} and {name!r} both make the column {column!r}; rename one")
    return table


def column_hints() -> dict[str, str]:
    """Return column -> what to do where no annotator of a recipe makes it."""
    return {
        column: kind.hint or f"add annotate.{name} and run `headrace annotate`"
        for name, kind in known_annotators().items()
        for column in kind.columns.names
    }
