"""The annotators, one a file, and this table: name in the recipe -> the annotator, in the order of running."""

import json
from collections.abc import Mapping

from headrace import files, urlpath
from headrace.curation.annotate.annotator import Annotator
from headrace.curation.annotate.annotators.aesthetic import Aesthetic
from headrace.curation.annotate.annotators.c2pa import C2pa
from headrace.curation.annotate.annotators.caption import CaptionFacts
from headrace.curation.annotate.annotators.caption_minhash import CaptionMinhash
from headrace.curation.annotate.annotators.clip import ClipScore
from headrace.curation.annotate.annotators.copy_embedding import CopyEmbedding
from headrace.curation.annotate.annotators.faces import FaceBoxes
from headrace.curation.annotate.annotators.hash_variants import HashVariants
from headrace.curation.annotate.annotators.hashes import Hashes
from headrace.curation.annotate.annotators.image import ImageFacts
from headrace.curation.annotate.annotators.language import Language
from headrace.curation.annotate.annotators.quality import Quality
from headrace.curation.annotate.annotators.regions import RegionBoxes
from headrace.curation.annotate.annotators.unsafe_image import UnsafeImage
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText
from headrace.extensions import with_extensions

ANNOTATORS: dict[str, type[Annotator]] = {
    "image": ImageFacts,
    "hashes": Hashes,
    "hash_variants": HashVariants,
    "copy_embedding": CopyEmbedding,
    "quality": Quality,
    "caption": CaptionFacts,
    "caption_minhash": CaptionMinhash,
    "language": Language,
    "clip": ClipScore,
    "aesthetic": Aesthetic,
    "unsafe_text": UnsafeText,
    "unsafe_image": UnsafeImage,
    "faces": FaceBoxes,
    "regions": RegionBoxes,
    "c2pa": C2pa,
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


def hidden_columns() -> list[str]:
    """Return the columns of boxes that build blurs, faces first."""
    return sorted(
        (kind.hides for kind in known_annotators().values() if kind.hides), key=lambda name: name != "face_boxes"
    )


def column_hints() -> dict[str, str]:
    """Return column -> what to do where no annotator of a recipe makes it."""
    return {
        column: _hint(name, kind, column) for name, kind in known_annotators().items() for column in kind.columns.names
    }


def remarks_of(folders: Mapping[str, str]) -> list[str]:
    """Return what the annotators say of their values with the settings that made the tables of these folders."""
    said = []
    for name, kind in known_annotators().items():
        try:
            made = json.loads(files.read_bytes(urlpath.join(folders[name], "annotator.json")))
        except (KeyError, FileNotFoundError):
            continue
        said.append(kind.remark(made.get("settings", {})))
    return [text for text in said if text]


def _hint(name: str, kind: type[Annotator], column: str) -> str:
    hint = kind.hint or f"add annotate.{name} and run `headrace annotate`"
    if all(column in columns for columns in kind.earlier.values()):
        return hint
    return f"{hint}; if the job has older tables of it, remove its annotations/{name}-* first"
