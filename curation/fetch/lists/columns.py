"""The columns that a config names, found among those that a list has."""

from collections.abc import Iterable, Sequence

from headrace.curation.fetch.config import InputConfig
from headrace.text import shown

MAX_NAMES_SHOWN = 50


def wanted_columns(config: InputConfig) -> dict[str, str]:
    """Return the columns that the config names, by setting."""
    own = {
        "url_column": config.url_column,
        "caption_column": config.caption_column,
        "sha256_column": config.sha256_column,
        "md5_column": config.md5_column,
        "sha512_column": config.sha512_column,
        "bbox_column": config.bbox_column,
    }
    wanted = {setting: name for setting, name in own.items() if name is not None}
    return wanted | {f"columns ({name})": name for name in config.columns}


def trimmed(names: Iterable[str]) -> list[str]:
    """Return the cells of a header without spaces, marks and letters of no width at their ends."""
    return [name.strip("\ufeff\u200b\u2060\0 \t\r\n\v\f\u00a0\u3000") for name in names]


def check_columns(url: str, known: Sequence[str], config: InputConfig, *, hint: str = "") -> None:
    """Raise ValueError if a column the config names is not among those the list has, or is there twice."""
    for setting, name in wanted_columns(config).items():
        if name not in known:
            none = ", or to null if the list has none" if setting == "caption_column" else ""
            raise ValueError(
                f"{url}: no column {shown(name)}; its columns: {_cells(known)}; set input.{setting}{none}{hint}"
            )
        if known.count(name) > 1:
            raise ValueError(f"{url}: {known.count(name)} columns are named {shown(name)}; rename all but one")


def _cells(known: Sequence[str]) -> str:
    """Return the columns as a message lists them; of a header that is one cell, those that it seems to hold."""
    apart = next((mark for mark in ";\t|" if len(known) == 1 and mark in known[0]), None)
    return _listed(known) if apart is None else f"{_listed(known[0].split(apart))} (if {apart!r} separates them)"


def _listed(names: Sequence[str]) -> str:
    """Return names as a message shows them: quoted where their ends would not be seen."""
    texts = [name if name and name == name.strip() else shown(name) for name in names]  # the command line shows them
    more = f" and {len(texts) - MAX_NAMES_SHOWN} more" if len(texts) > MAX_NAMES_SHOWN else ""
    return ", ".join(text[:200] for text in texts[:MAX_NAMES_SHOWN]) + more
