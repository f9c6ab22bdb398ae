"""img2dataset's command line as a recipe. Every flag of 1.47 is mapped, or named with the reason why it is not.

Flags that are not given count with img2dataset's defaults, so that the recipe does what that command would have done.
"""

import ast
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace import files, urlpath
from headrace.text import shown

DEFAULTS: Mapping[str, Any] = {
    "url_list": None,
    "image_size": 256,
    "output_folder": "images",
    "processes_count": 1,
    "resize_mode": "border",
    "resize_only_if_bigger": False,
    "upscale_interpolation": "lanczos",
    "downscale_interpolation": "area",
    "encode_quality": 95,
    "encode_format": "jpg",
    "skip_reencode": False,
    "output_format": "files",
    "input_format": "txt",
    "url_col": "url",
    "caption_col": None,
    "bbox_col": None,
    "thread_count": 256,
    "number_sample_per_shard": 10_000,
    "extract_exif": True,
    "save_additional_columns": None,
    "timeout": 10,
    "enable_wandb": False,
    "wandb_project": "img2dataset",
    "oom_shard_count": 5,
    "compute_hash": "sha256",
    "verify_hash": None,
    "distributor": "multiprocessing",
    "subjob_size": 1000,
    "retries": 0,
    "disable_all_reencoding": False,
    "min_image_size": 0,
    "max_image_area": float("inf"),
    "max_aspect_ratio": float("inf"),
    "incremental_mode": "incremental",
    "max_shard_retry": 1,
    "user_agent_token": None,
    "disallowed_header_directives": None,
}
"""Flag -> default of img2dataset 1.47.0."""

FORMATS = {"txt": "txt", "csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "jsonl", "parquet": "parquet"}
MODES = ("no", "keep_ratio", "keep_ratio_largest", "center_crop", "border")
DIRECTIVES = {"noai", "noimageai", "noindex", "noimageindex"}
MAX_CONCURRENCY = 4096


@dataclass(slots=True)
class Mapped:
    """A recipe in the making."""

    flags: Mapping[str, Any]
    given: frozenset[str]
    input: dict[str, Any] = field(default_factory=dict)
    fetch: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Flag -> what it became where that is not the same, or why it is not supported."""


def recipe_data(arguments: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the recipe of a command line, and what is not the same here, by flag. Raises ValueError."""
    mapped = map_flags(parse_flags(arguments))
    data = {
        "job": str(mapped.flags["output_folder"]),
        "unsafe_images": "off",
        "input": mapped.input,
        "fetch": mapped.fetch,
        "engine": mapped.engine,
    }
    return data, mapped.notes


def parse_flags(arguments: str) -> dict[str, Any]:
    """Return the flags that are given, as Fire reads them: `--a=1`, `--a 1`, `--a`, `--noa`, and the list by place."""
    words = shlex.split(arguments)
    if words and urlpath.basename(words[0]) == "img2dataset":
        words = words[1:]
    found: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            name, equals, text = "url_list", "=", word
        elif name not in DEFAULTS and name.startswith("no") and name[2:] in DEFAULTS and not equals:
            name, equals, text = name[2:], "=", "False"
        if name not in DEFAULTS:
            raise ValueError(
                f"--from-img2dataset: unknown flag {shown(word)}; img2dataset 1.47 has {', '.join(DEFAULTS)}"
            )
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else "True"
        if name in found:
            raise ValueError(f"--from-img2dataset: {name} is given twice")
        found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    """Return a value as Fire would: Python where it is some, `[a,b]` as a list of words, else text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if text.startswith("[") and text.endswith("]"):
            return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
        return float(text) if text in ("inf", "nan") else text


def map_flags(given: Mapping[str, Any]) -> Mapped:
    """Return what the flags are here. Raises ValueError for a value that img2dataset would not take either."""
    mapped = Mapped({**DEFAULTS, **given}, frozenset(given))
    for flag, function in MAPPINGS.items():
        try:
            function(mapped, mapped.flags[flag])
        except (TypeError, KeyError, OverflowError, ValueError) as error:
            if str(error).startswith("--from-img2dataset: "):
                raise
            raise ValueError(f"--from-img2dataset: {flag} cannot be {shown(mapped.flags[flag])}") from error
    return mapped


def _lists(mapped: Mapped, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError("--from-img2dataset: url_list is missing: name the list of URLs")
    suffix = str(mapped.flags["input_format"])
    mapped.input["urls"] = [urlpath.join(value, f"*.{suffix}") if files.is_folder(value) else value]


def _input_format(mapped: Mapped, value: Any) -> None:
    mapped.input["format"] = FORMATS[str(value).removesuffix(".gz")]


def _url_col(mapped: Mapped, value: Any) -> None:
    mapped.input["url_column"] = str(value)


def _caption_col(mapped: Mapped, value: Any) -> None:
    mapped.input["caption_column"] = None if value is None else str(value)


def _bbox_col(mapped: Mapped, value: Any) -> None:
    if value is not None:
        mapped.input["bbox_column"] = str(value)
        mapped.notes["bbox_col"] = "sigma is 0.1 of each box's longer side; img2dataset 1.46+ blurs with half of it"


def _columns(mapped: Mapped, value: Any) -> None:
    if value is not None:
        names = value if isinstance(value, list | tuple) else str(value).split(",")
        mapped.input["columns"] = [str(name) for name in names if str(name) != "uid"]
        if "uid" in names:
            mapped.notes["save_additional_columns"] = "uid is made here: md5 of caption + url, as DataComp defines it"


def _output_folder(mapped: Mapped, _value: Any) -> None:
    mapped.notes["output_folder"] = "the job's folder; raw shards lie in raw/ below it"


def _resize_mode(mapped: Mapped, value: Any) -> None:
    if value not in MODES:
        raise KeyError(value)
    unchanged = mapped.flags["disable_all_reencoding"] is True
    mapped.fetch["resize"] = "none" if value == "no" or unchanged else value
    if not unchanged:
        mapped.notes["resize_mode"] = "images are turned upright first, and what need not change keeps its bytes"


def _same(name: str) -> Callable[[Mapped, Any], None]:
    def function(mapped: Mapped, value: Any) -> None:
        mapped.fetch[name] = value

    return function


def _interpolation(flag: str, ours: str) -> Callable[[Mapped, Any], None]:
    def function(mapped: Mapped, value: Any) -> None:
        if str(value).lower() != ours:
            mapped.notes[flag] = f"not supported: always {ours}"

    return function


def _quality(mapped: Mapped, value: Any) -> None:
    if mapped.flags["encode_format"] == "png":
        if "encode_quality" in mapped.given:
            mapped.notes["encode_quality"] = "not supported for png: there it is the compression, which loses nothing"
        return
    mapped.fetch["encode_quality"] = value


def _encode_format(mapped: Mapped, value: Any) -> None:
    mapped.fetch["encode_format"] = {"jpg": "jpeg", "png": "png", "webp": "webp"}[value]
    if mapped.fetch["encode_format"] != "jpeg":
        mapped.notes["encode_format"] = "of images that are changed; the others keep their bytes and format"


def _skip_reencode(mapped: Mapped, value: Any) -> None:
    if not value and not mapped.flags["disable_all_reencoding"] and "skip_reencode" in mapped.given:
        mapped.notes["skip_reencode"] = "always on: what need not change keeps its bytes"


def _disable_all_reencoding(mapped: Mapped, value: Any) -> None:
    if value:
        mapped.notes["disable_all_reencoding"] = "as resize: none; images are still checked to be whole"


def _output_format(mapped: Mapped, value: Any) -> None:
    refused = {
        "tfrecord": "not supported (it needs tensorflow): webdataset instead",
        "dummy": "not supported: `headrace fetch --dry-run` says what would be fetched; webdataset instead",
    }
    if value in refused:
        mapped.notes["output_format"] = refused[value]
        value = "webdataset"
    mapped.fetch["output_format"] = {"webdataset": "webdataset", "files": "files", "parquet": "parquet"}[value]


def _threads(mapped: Mapped, value: Any) -> None:
    mapped.fetch["concurrency"] = min(int(value), MAX_CONCURRENCY)
    mapped.notes["thread_count"] = "URLs in flight in each process, at most 4 of one host (fetch.per_host)"


def _processes(mapped: Mapped, value: Any) -> None:
    mapped.engine["workers"] = int(value)


def _distributor(mapped: Mapped, value: Any) -> None:
    if value == "pyspark":
        mapped.notes["distributor"] = "pyspark is not supported: processes of this machine, or engine.executor: ray"
    mapped.engine["executor"] = {"multiprocessing": "local", "pyspark": "local", "ray": "ray"}[value]


def _timeout(mapped: Mapped, value: Any) -> None:
    mapped.fetch["attempt_seconds"] = float(value)
    mapped.notes["timeout"] = "of a whole attempt here, of one read of the socket there"


def _retries(mapped: Mapped, value: Any) -> None:
    mapped.fetch["retries"] = int(value)
    if value:
        mapped.notes["retries"] = "only where they can help (no 4xx), with pauses that grow"


def _compute_hash(mapped: Mapped, value: Any) -> None:
    if value not in (None, "md5", "sha256", "sha512"):
        raise KeyError(value)
    if value is None:
        mapped.notes["compute_hash"] = "not supported as none: sha256 is always there"
    elif value != "sha256":
        mapped.fetch["hashes"] = [value]


def _verify_hash(mapped: Mapped, value: Any) -> None:
    if value is not None:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise TypeError(value)
        column, algorithm = value
        setting = {"md5": "md5_column", "sha256": "sha256_column", "sha512": "sha512_column"}[algorithm]
        mapped.input[setting] = str(column)


def _limit(name: str) -> Callable[[Mapped, Any], None]:
    def function(mapped: Mapped, value: Any) -> None:
        if value != float("inf"):
            mapped.fetch[name] = int(value) if name == "max_image_area" else float(value)

    return function


def _agent(mapped: Mapped, value: Any) -> None:
    if value is not None:
        mapped.fetch["user_agent"] = f"Mozilla/5.0 (compatible; {value}; headrace)"
    mapped.notes["user_agent_token"] = "we say who we are, not that we are Firefox"


def _directives(mapped: Mapped, value: Any) -> None:
    if value is None or {str(item) for item in value} >= DIRECTIVES:
        mapped.notes["disallowed_header_directives"] = "these, and what else asks to be left out (docs/fetch.md)"
    elif not value:
        mapped.fetch["honor_opt_out"] = False
    else:
        mapped.notes["disallowed_header_directives"] = (
            f"not supported as a part: all of {', '.join(sorted(DIRECTIVES))}, or honor_opt_out: false"
        )


def _incremental(mapped: Mapped, value: Any) -> None:
    mapped.notes |= {
        "incremental": {},
        "overwrite": {"incremental_mode": "not supported: remove the job's folder yourself"},
        "extend": {
            "incremental_mode": "always so: what is new in the list gets raw shards with the numbers that follow"
        },
    }[value]


def _unsupported(flag: str, why: str) -> Callable[[Mapped, Any], None]:
    def function(mapped: Mapped, _value: Any) -> None:
        if flag in mapped.given:
            mapped.notes[flag] = f"not supported: {why}"

    return function


MAPPINGS: Mapping[str, Callable[[Mapped, Any], None]] = {
    "url_list": _lists,
    "input_format": _input_format,
    "url_col": _url_col,
    "caption_col": _caption_col,
    "save_additional_columns": _columns,
    "bbox_col": _bbox_col,
    "verify_hash": _verify_hash,
    "output_folder": _output_folder,
    "number_sample_per_shard": _same("samples_per_shard"),
    "thread_count": _threads,
    "retries": _retries,
    "timeout": _timeout,
    "user_agent_token": _agent,
    "disallowed_header_directives": _directives,
    "resize_mode": _resize_mode,
    "image_size": _same("image_size"),
    "resize_only_if_bigger": _same("resize_only_if_bigger"),
    "upscale_interpolation": _interpolation("upscale_interpolation", "lanczos"),
    "downscale_interpolation": _interpolation("downscale_interpolation", "area"),
    "encode_format": _encode_format,
    "encode_quality": _quality,
    "skip_reencode": _skip_reencode,
    "disable_all_reencoding": _disable_all_reencoding,
    "min_image_size": _same("min_image_size"),
    "max_image_area": _limit("max_image_area"),
    "max_aspect_ratio": _limit("max_aspect_ratio"),
    "compute_hash": _compute_hash,
    "extract_exif": _same("exif"),
    "output_format": _output_format,
    "processes_count": _processes,
    "distributor": _distributor,
    "incremental_mode": _incremental,
    "subjob_size": _unsupported("subjob_size", "shards are handed out one by one"),
    "max_shard_retry": _unsupported("max_shard_retry", "run the same command again; finished shards stay"),
    "oom_shard_count": _unsupported("oom_shard_count", "names have five digits, and more where they are needed"),
    "enable_wandb": _unsupported("enable_wandb", "see --json and JOB/report/fetch.json"),
    "wandb_project": _unsupported("wandb_project", "see --json and JOB/report/fetch.json"),
}
