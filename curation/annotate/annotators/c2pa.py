"""What an image says of training inside itself: the assertions of C2PA and CAWG on training and data mining.

`c2pa.training-mining` and `cawg.training-mining` (CAWG Training and Data Mining Assertion 1.1) hold entries with `use`:
allowed, notAllowed or constrained. The strictest entry on training or data mining counts, of every manifest of the
image, whoever signed it: a refusal signed by a stranger is one too. The bytes are hostile, so a process with limits
reads them. A manifest that stands elsewhere on the web is not fetched.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns
from headrace.curation.annotate.annotators.c2pa_process import ReaderProcess
from headrace.text import MAX_LINE, one_line

MARK = b"c2pa"
"""Label of the outermost box of a manifest; bytes without it hold none."""
LABELS = ("c2pa.training-mining", "cawg.training-mining")
STRICTEST = ("notAllowed", "constrained", "allowed")


@dataclass(frozen=True, kw_only=True, slots=True)
class C2paConfig:
    """Assertions on training in an image's C2PA manifest. Nothing to set."""


class C2pa(Annotator):
    """What the C2PA manifest inside of an image says of training.

    Null where it says nothing. A fetch that resized stored images without their manifests.
    """

    name: ClassVar[str] = "c2pa"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = C2paConfig
    needs_pixels: ClassVar[bool] = True  # for the bytes, which are read with them
    packages: ClassVar[tuple[str, ...]] = ("c2pa",)
    columns: ClassVar[pa.Schema] = pa.schema(
        [("c2pa_training", pa.string()), ("c2pa_evidence", pa.string()), ("c2pa_error", pa.string())]
    )

    config: C2paConfig

    def __init__(self, config: Any, made_as: int | None = None) -> None:
        super().__init__(config, made_as)
        self._reader: ReaderProcess | None = None

    def annotate(self, batch: AnnotationBatch) -> Columns:
        found = [self._judge(data) for data in batch.data]
        return {name: [row[place] for row in found] for place, name in enumerate(self.columns.names)}

    def _judge(self, data: bytes | None) -> tuple[str | None, str | None, str | None]:
        if data is None or MARK not in data:
            return None, None, None
        if self._reader is None:
            self._reader = ReaderProcess()
        answer = self._reader.read(data)
        if "error" in answer:
            return None, None, one_line(str(answer["error"]))[:MAX_LINE]
        return (*training_use(answer.get("manifests")), None)


def training_use(manifests: Any) -> tuple[str | None, str | None]:
    """Return the strictest `use` of what the manifests of c2pa's JSON say of training, and the entries that say it."""
    stated = list(_entries(manifests))
    use = next((word for word in STRICTEST if any(entry[2] == word for entry in stated)), None)
    if use is None:
        return None, None
    lines = [f"{label}: {name} {word}{note}" for label, name, word, note in stated if word == use]
    return use, one_line("; ".join(dict.fromkeys(lines)))[:MAX_LINE]


def _entries(manifests: Any) -> Iterable[tuple[str, str, str, str]]:
    for manifest in manifests.values() if isinstance(manifests, dict) else ():
        assertions = manifest.get("assertions") if isinstance(manifest, dict) else None
        for assertion in assertions if isinstance(assertions, list) else ():
            label = assertion.get("label", "") if isinstance(assertion, dict) else ""
            if not isinstance(label, str) or label.partition("__")[0] not in LABELS:
                continue
            data = assertion.get("data")
            entries = data.get("entries") if isinstance(data, dict) else None
            for name, entry in entries.items() if isinstance(entries, dict) else ():
                if isinstance(entry, dict) and str(name).endswith(("_training", "data_mining")):
                    note = entry.get("constraint_info")
                    yield label, str(name), str(entry.get("use")), f" ({json.dumps(note)})" if note else ""
