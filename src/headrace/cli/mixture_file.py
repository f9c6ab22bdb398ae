"""The mixture file that `headrace build --mixture` writes: the new dataset, alone or with others.

Paths in it are absolute, as a mixture's relative ones count from the folder in which a command is started.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headrace import atomic, urlpath

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class MixtureFile:
    """A mixture file to write, checked."""

    path: Path
    text: str

    def write(self) -> None:
        """Write it, or leave it where it is there already."""
        atomic.write_atomic(str(self.path), self.text.encode())


def mixture_file(path: str, dataset: str, others: Sequence[str], *, name: str) -> MixtureFile:
    """Return the file at `path` that mixes `dataset`, called `name`, with `others`: each URL=SHARE.

    The dataset has what the shares of the others leave of 1. Raises ValueError for what is no such share, and for a
    file that is there and says something else.
    """
    from headrace.config import build_config
    from headrace.pipeline.mixture import Mixture

    given = [_other(text) for text in others]
    left = round(1 - sum(share for _, share in given), 9)
    if left <= 0:
        raise ValueError(f"--with: the shares sum to {1 - left:g}, so nothing is left for {dataset}; give less than 1")
    for url, _ in given:
        _check_is_there(url)
    sources: list[dict[str, Any]] = []
    for url, share in [(dataset, left), *given]:
        called = name if url == dataset and not sources else urlpath.basename(url.rstrip("/"))
        source = {"name": _unused(called, sources), "url": _absolute(url), "weight": share}
        sources.append(source if given else {key: value for key, value in source.items() if key != "weight"})
    checked = build_config(Mixture, {"sources": sources})
    data = {"seed": 0, "lanes": checked.lanes, "image_size": checked.image_size, "sources": sources}
    head = "# Written by headrace build. Look at it: headrace stream THIS_FILE; in a run file: mixture: THIS_FILE\n"
    text = head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    place = Path(path)
    if place.exists() and place.read_bytes() != text.encode():
        raise ValueError(f"--mixture {path}: the file is there and says something else; name another, or remove it")
    return MixtureFile(place, text)


def _other(text: str) -> tuple[str, float]:
    url, _, share = text.rpartition("=")
    try:
        number = float(share)
    except ValueError:
        number = 0.0
    if not url or not 0 < number < 1:
        raise ValueError(f"--with {text}: expected DATASET=SHARE with a share over 0 and under 1, such as imagenet=0.2")
    return url, number


def _check_is_there(url: str) -> None:
    """Raise ValueError if a local dataset that a mixture is to name is not there."""
    if urlpath.is_local(url) and not Path(urlpath.local_path(url)).exists():
        raise ValueError(f"--with {url}: there is no such dataset; index or import it first, or mend the path")


def _absolute(url: str) -> str:
    return str(Path(urlpath.local_path(url)).absolute()) if urlpath.is_local(url) else url


def _unused(name: str, sources: Sequence[dict[str, Any]]) -> str:
    base = _NOT_IN_NAMES.sub("-", name).strip("-") or "dataset"
    taken = {source["name"] for source in sources}
    return next(one for one in (base, *(f"{base}-{number}" for number in range(2, 2000))) if one not in taken)
