"""`README.md`: the data card, for people who get the dataset without the job that it came of."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from headrace.text import printable

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGER = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))
SHOWN_CLASSES = 20


def readme(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    """Return the card as Markdown, with the head that dataset hubs read."""
    card = about["card"]
    head = {
        "pretty_name": card["title"],
        **({"license": card["license"]} if card["license"] else {}),
        "size_categories": [_size(numbers["num_samples"])],
        "tags": ["webdataset", "images", "headrace"],
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(), "---", f"# {card['title']}", ""]
    lines += [card["description"], ""] if card["description"] else []
    for title, part in _SECTIONS:
        lines += [f"## {title}", "", *part(about, numbers), ""]
    return "\n".join(_safe(line) for line in lines).rstrip() + "\n"


def _safe(line: str) -> str:
    return "\n".join(printable(part) for part in line.split("\n"))


def _size(count: int) -> str:
    return next((name for most, name in (*_SIZES, *_LARGER) if count < most), "n>1B")


def _table(*rows: tuple[object, ...]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield "| " + " | ".join(_cell(value) for value in row) + " |"
        if number == 0:
            yield "| " + " | ".join("---" for _ in row) + " |"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Return a text of the data as code: Markdown and HTML in it mean nothing."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _what(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> Iterator[str]:
    ledger, taken = about["ledger"], numbers["taken_down"]
    rows: list[tuple[object, ...]] = [
        ("", ""),
        ("samples", f"{numbers['num_samples']:,}"),
        ("shards", f"{numbers['num_shards']:,} WebDataset tars, {numbers['num_bytes']:,} bytes"),
        ("rows of the lists", f"{ledger['rows']:,}, of which {ledger['kept']:,} were kept"),
        ("could not be built", f"{numbers['num_failed']:,}"),
        ("taken down since", f"{taken['samples']:,} samples, {taken['times']:,} times"),
    ]
    rows += [("version", about["card"]["version"])] if about["card"]["version"] else []
    yield from _table(*rows)


def _sources(about: Mapping[str, Any], _numbers: Mapping[str, Any]) -> Iterator[str]:
    yield from [f"- {source}" for source in about["sources"]] or ["Not told."]


def _consent(about: Mapping[str, Any], _numbers: Mapping[str, Any]) -> Iterator[str]:
    licence = about["card"]["license"]
    yield f"Licence of this compilation: {licence}." if licence else "No licence is stated for this compilation."
    yield ""
    yield "The images belong to their owners. No licence of a single image was looked for or kept."
    yield ""
    signals = about["signals"]
    if about["fetched"]:
        yield f"Signals that were obeyed when images were fetched: {', '.join(signals) or 'none'}."
        refused = [step["dropped"].get("opted-out", 0) for step in about["ledger"]["steps"]]
        yield f"Rows left out as their owners said no (`opted-out`): {sum(refused):,}."
    else:
        yield "The images were fetched by another program; which signals it obeyed is not known."
    if about["blocklist"]:
        yield "A blocklist was applied; what it holds is not told."


def _funnel(about: Mapping[str, Any], _numbers: Mapping[str, Any]) -> Iterator[str]:
    rows: list[tuple[object, ...]] = [("step", "rows in", "dropped", "rows out", "threshold", "settings")]
    for step in about["ledger"]["steps"]:
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in step["dropped"].items()) or "-"
        settings = ", ".join(f"{name} = {value}" for name, value in step["settings"].items())
        threshold = "-" if step["threshold"] is None else f"{step['threshold']:g}"
        rows.append(
            (step["name"], f"{step['rows_in']:,}", dropped, f"{step['rows_out']:,}", threshold, settings or "-")
        )
    yield from _table(*rows)
    for step in about["ledger"]["steps"]:
        if step.get("evaluation"):
            yield ""
            yield f"`{step['name']}` kept these evaluation sets out: {', '.join(map(_code, step['evaluation']))}."
            found = (step.get("measured") or {}).get("recall") or {}
            if found:
                shares = ", ".join(f"{name} {share:.0%}" for name, share in found.items())
                yield f"Of copies made of their own pictures it finds, measured: {shares}."


def _models(about: Mapping[str, Any], _numbers: Mapping[str, Any]) -> Iterator[str]:
    rows: list[tuple[object, ...]] = [("annotator", "version", "sha256 of its files")]
    for made in about["annotators"]:
        models = ", ".join(f"{role}: `{digest}`" for role, digest in made["models"].items())
        rows.append((made["name"], made["version"], models or "none"))
    yield from _table(*rows) if len(rows) > 1 else ["No annotator has said what it was."]


def _people(about: Mapping[str, Any], _numbers: Mapping[str, Any]) -> Iterator[str]:
    blurred = about["build"].get("blur_faces")
    yield "Faces that were found are blurred." if blurred else "Faces were not blurred."
    yield from about["remarks"]


def _format(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> Iterator[str]:
    build, classes = about["build"], about["classes"]
    yield "`shards/NAME.tar` is a WebDataset tar, `shards/NAME.parquet` its index, `shards.parquet` the manifest."
    yield "Metadata of the images (Exif, XMP, IPTC, comments) was cut."
    if build.get("format", "source") != "source":
        yield f"Every image is {build['format']}."
    for side in ("longest", "shortest"):
        if build.get(f"{side}_side"):
            yield f"Images were made smaller until their {side} side had {build[f'{side}_side']} pixels."
    if classes:
        more = ", ..." if len(classes) > SHOWN_CLASSES else ""
        shown = ", ".join(map(_code, classes[:SHOWN_CLASSES]))
        yield f"Labels are numbers of {len(classes)} classes: {shown}{more}."
    yield ""
    yield "Columns of the index: " + ", ".join(_code(name) for name, _ in numbers["columns"]) + "."


def _limits(about: Mapping[str, Any], _numbers: Mapping[str, Any]) -> Iterator[str]:
    yield "- Captions are what the lists said; nobody has checked that they describe the image."
    yield "- A filter keeps and drops wrongly; the table above says what was applied, not how often it errs."
    yield "- Faces that the detector misses, names in captions, and people known by other marks are still there."
    if about["unsafe_images"] == "off":
        yield "- No step removed unsafe images."
    yield "- The addresses lead to third parties, whose content may have changed since."


_SECTIONS = (
    ("What it is", _what),
    ("Sources", _sources),
    ("Licence and consent", _consent),
    ("How rows were chosen", _funnel),
    ("Models", _models),
    ("People", _people),
    ("Format", _format),
    ("Known limits", _limits),
)
