"""`plan.json`: which lists a job has taken, as segments, and how a list that has grown goes on.

A list grows by new files, and by rows at the end of a text list. Both become a segment of their own: with its own
order and its own raw shards, after all that are in use. What a segment holds never changes again, so a list that was
changed or is gone is refused. A part of a file is known by the bytes that the file had: only those are ever read for
it, however long the file has become.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace import atomic, files
from headrace.config import canonical_json, config_to_dict
from headrace.curation.fetch.config import RESIZING, FetchConfig, InputConfig
from headrace.curation.fetch.lists.inputs import ListFile, fingerprint, list_files
from headrace.curation.raw.record import read_json
from headrace.curation.raw.segments import PLAN_SCHEMA, Segment, segments_of

# Raised whenever the same list would give other rows. 1: until quotes of tsv became letters.
READER = 2
APPENDABLE = ("txt", "csv", "tsv", "jsonl")
"""Formats whose rows may be followed by more."""
NOT_PLANNED = ("urls", "date_column", "reuse", "reuse_failures")
"""Settings of the input that do not fix its rows."""

MAX_NAMED = 3
ADVICE = (
    "Rows that were taken stay as they are: restore these lists, and add new rows as files of their own or at the end "
    "of a text list; or give the new list a job folder of its own"
)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A list, or the rows of it that one segment holds."""

    name: str
    num_bytes: int
    """Of the file when it was planned."""
    sha256: str
    """Of those bytes, as `fingerprint` takes it."""
    rows: int
    start_row: int = 0
    """Rows of the file that earlier segments hold."""


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """What was planned at one time."""

    files: tuple[PlannedFile, ...]
    first_shard: int
    reader: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What fixes the rows of every raw shard."""

    input: dict[str, Any]
    samples_per_shard: int
    seed: int
    output: dict[str, Any]
    """Settings of fetch that fix the columns and files of a raw shard."""
    resizing: int = RESIZING
    """How images are changed."""
    segments: tuple[PlannedSegment, ...] = ()

    def write(self, url: str) -> None:
        """Write the plan: all of it, or what was there stays."""
        segments = [
            {
                "files": [_file_record(file) for file in segment.files],
                "first_shard": segment.first_shard,
                "reader": segment.reader,
            }
            for segment in self.segments
        ]
        record = {
            "input": self.input,
            # Beside the settings, as a headrace that knows one way only refuses a plan with settings it does not know.
            "output": self.output if self.resizing == 1 else {**self.output, "resizing": self.resizing},
            "samples_per_shard": self.samples_per_shard,
            "schema": PLAN_SCHEMA,
            "seed": self.seed,
            "segments": segments,
        }
        atomic.write_atomic(url, (canonical_json(record) + "\n").encode())

    @property
    def places(self) -> tuple[Segment, ...]:
        """Return the raw shards of each segment."""
        return tuple(
            Segment(segment.first_shard, sum(file.rows for file in segment.files), self.samples_per_shard)
            for segment in self.segments
        )


@dataclass(frozen=True, slots=True)
class Agreed:
    """A plan, and the lists of today that it speaks of."""

    plan: Plan
    segments: tuple[tuple[ListFile, ...], ...]
    """The files of each planned segment, as they lie there now."""
    new: tuple[ListFile, ...]
    """Files, and ends of files, that no segment holds yet."""


def agree(config: InputConfig, plan_url: str, *, seed: int, fetch: FetchConfig) -> Agreed:
    """Compare the lists with the plan, if there is one. Raises ValueError where something planned has changed."""
    lists = list_files(config)
    told = Plan(_planned_input(config), fetch.samples_per_shard, seed, fetch.output)
    if not files.exists(plan_url):
        return Agreed(told, (), tuple(_whole(file) for file in lists))
    plan = read_plan(plan_url)
    names = {
        "input": "the settings of input",
        "output": "fetch.exif, hashes or output_format",
        "samples_per_shard": "samples_per_shard",
        "seed": "seed",
    }
    changed = [name for field, name in names.items() if getattr(plan, field) != getattr(told, field)]
    known = _known(plan)
    found, problems = _matched(lists, known)
    if problems:
        changed.insert(0, "the files of input.urls")
    if changed:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        details = f" ({'; '.join(problems[:MAX_NAMED])}{more})" if problems else ""
        raise ValueError(
            f"{plan_url}: this job began with another input; changed: {', '.join(changed)}{details}. {ADVICE}"
        )
    segments = tuple(
        tuple(
            replace(found[file.name], num_bytes=_limit(found[file.name], file.num_bytes), start_row=file.start_row)
            for file in segment.files
        )
        for segment in plan.segments
    )
    return Agreed(plan, segments, _new_parts(lists, found, known))


def _whole(file: ListFile) -> ListFile:
    return replace(file, num_bytes=_limit(file, files.size_of(file.url)))


def _limit(file: ListFile, num_bytes: int) -> int | None:
    """Return how many bytes are read of a list; None of one that is known by its whole only."""
    return num_bytes if file.format in APPENDABLE else None


def _known(plan: Plan) -> dict[str, PlannedFile]:
    """Return of each list the latest part that was planned."""
    return {file.name: file for segment in plan.segments for file in segment.files}


def _matched(lists: Sequence[ListFile], known: dict[str, PlannedFile]) -> tuple[dict[str, ListFile], list[str]]:
    """Return the list of today behind each planned name, and what is wrong with those that have none.

    A name is the path below the folder that all lists share, so it grows longer where a file elsewhere joins them; the
    planned name stays the name, as it stands in the tables.
    """
    found: dict[str, ListFile] = {}
    problems = []
    for name, planned in known.items():
        candidates = sorted((file for file in lists if _may_be(file, name)), key=lambda file: file.name != name)
        told = f"{name} is gone"
        for file in candidates:
            told = difference(file, planned)
            if not told:
                found[name] = replace(file, name=name)
                break
        if told:
            problems.append(told)
    return found, problems


def _may_be(file: ListFile, name: str) -> bool:
    return file.name == name or file.name.endswith(f"/{name}") or name.endswith(f"/{file.name}")


def difference(file: ListFile, planned: PlannedFile) -> str:
    """Say what has changed in the part of a list that is planned; "" if nothing has."""
    size = files.size_of(file.url)
    if size < planned.num_bytes:
        return f"{planned.name} had {planned.num_bytes} bytes and has {size}"
    if size > planned.num_bytes and file.format not in APPENDABLE:
        return f"{planned.name} had {planned.num_bytes} bytes and has {size}, and a {file.format} list grows by files"
    if fingerprint(file, planned.num_bytes)["sha256"] != planned.sha256:
        return f"{planned.name} has other content in its first {planned.num_bytes} bytes"
    return ""


def _new_parts(
    lists: Sequence[ListFile], found: dict[str, ListFile], known: dict[str, PlannedFile]
) -> tuple[ListFile, ...]:
    names = {file.url: name for name, file in found.items()}
    parts = []
    for file in lists:
        name = names.get(file.url)
        if name is None:
            if file.name in known:
                raise ValueError(
                    f"input.urls: {file.url} would be named {file.name} in the tables, as a list that this job has "
                    "taken already; rename the file"
                )
            parts.append(_whole(file))
            continue
        planned = known[name]
        size = files.size_of(file.url)
        if size > planned.num_bytes:
            part = replace(file, name=name, num_bytes=size, start_row=planned.start_row + planned.rows)
            parts.append(part)
    return tuple(parts)


def _planned_input(config: InputConfig) -> dict[str, Any]:
    return {name: value for name, value in config_to_dict(config).items() if name not in NOT_PLANNED}


def planned_file(file: ListFile, rows: int) -> PlannedFile:
    """Return what a plan says of a list, or of the end of one."""
    told = fingerprint(file, file.num_bytes)
    return PlannedFile(file.name, told["bytes"], told["sha256"], rows, file.start_row)


def _file_record(file: PlannedFile) -> dict[str, Any]:
    record = {"bytes": file.num_bytes, "name": file.name, "rows": file.rows, "sha256": file.sha256}
    return {**record, "start_row": file.start_row} if file.start_row else record


def read_plan(url: str) -> Plan:
    """Return the plan of a job. Raises ValueError if it is damaged."""
    record = read_json(url)
    segments_of(record, url)  # looks at all numbers
    try:
        told = record["segments"] if "schema" in record else [_first_segment(record)]
        segments = tuple(
            PlannedSegment(
                files=tuple(
                    PlannedFile(
                        str(file["name"]),
                        int(file["bytes"]),
                        str(file["sha256"]),
                        file["rows"],
                        file.get("start_row", 0),
                    )
                    for file in segment["files"]
                ),
                first_shard=segment["first_shard"],
                reader=segment.get("reader", 1),
            )
            for segment in told
        )
        # A setting that an older headrace did not know is at its default.
        settings = {**_planned_input(InputConfig(urls=("any",))), **record["input"]}
        output = {**FetchConfig().output, **record.get("output", {})}
        resizing = int(output.pop("resizing", 1))
        plan = Plan(settings, record["samples_per_shard"], record["seed"], output, resizing, segments)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{url}: damaged: {error!r}; restore it, or give the list a new job folder") from error
    if not 1 <= resizing <= RESIZING:
        raise ValueError(
            f"{url}: this job resizes images in way {resizing}, this headrace knows the ways 1 to {RESIZING}; go on "
            "with the headrace that began it, or give the list a new job folder"
        )
    return plan


def _first_segment(record: dict[str, Any]) -> dict[str, Any]:
    """Return the one segment of a plan of schema 1."""
    listed = [{**file, "rows": rows} for file, rows in zip(record["files"], record["rows"], strict=True)]
    return {"files": listed, "first_shard": 0, "reader": record.get("reader", 1)}
