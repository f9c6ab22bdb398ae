"""`croissant.json`: the dataset in Croissant 1.1, with its files, the columns of its index and its images.

Small datasets name every tar with its sum; of larger ones the manifest holds the sums, and one glob names the tars.
Source: Croissant Format Specification 1.1 (MLCommons, 2026), resources and record sets; context of appendix 1.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

VERSION = "http://mlcommons.org/croissant/1.1"
MAX_NAMED_SHARDS = 1000
_IMAGES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif"}
_JSON = {"@type": "@json"}
_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileProperty"),
    *("fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
    *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator"),
    *("source", "subField", "transform"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", **_JSON},
    "examples": {"@id": "cr:examples", **_JSON},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS},
}


def croissant(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document; `numbers` are the totals, shards and columns of the dataset as it lies there."""
    card = about["card"]
    told = {
        "license": card["license"],
        "creator": {"@type": "Organization", "name": card["creator"]} if card["creator"] else "",
        "url": card["url"],
        "datePublished": card["date_published"],
        "version": card["version"],
        "citeAs": card["cite_as"],
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": card["title"],
        "description": card["description"] or _description(about, numbers),
        **{name: value for name, value in told.items() if value},
        "rai:dataCollection": _collection(about),
        "rai:dataPreprocessingProtocol": [
            f"{step['name']} ({step['step']}): {step['rows_in']} rows in, {step['rows_out']} rows out"
            for step in about["ledger"]["steps"]
        ],
        **({"rai:dataLimitations": about["remarks"]} if about["remarks"] else {}),
        "distribution": _files(numbers),
        "recordSet": [_samples(numbers), *([_images()] if numbers["num_shards"] else [])],
    }


def _description(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    ledger = about["ledger"]
    return (
        f"{numbers['num_samples']} images in {numbers['num_shards']} WebDataset shards, kept of {ledger['rows']} rows "
        "of lists of URLs, with captions and an index in parquet."
    )


def _collection(about: Mapping[str, Any]) -> str:
    return "Images were fetched from the URLs of: " + ", ".join(about["sources"]) if about["sources"] else "Not told."


def _files(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    manifest = _file("manifest", "shards.parquet", numbers["manifest_bytes"], numbers["manifest_sha256"])
    manifest |= {
        "description": "Every shard with its samples, its bytes, the sha256 of its tar and of its index.",
        "encodingFormat": "application/x-parquet",
    }
    named = numbers["shards"] if numbers["num_shards"] <= MAX_NAMED_SHARDS else []
    tars = [
        {
            **_file(f"{shard['name']}.tar", f"shards/{shard['name']}.tar", shard["num_bytes"], shard["sha256"]),
            "encodingFormat": "application/x-tar",
        }
        for shard in named
    ]
    indexes = {
        "@type": "cr:FileSet",
        "@id": "indexes",
        "name": "indexes",
        "description": "One row a sample, in the order of the shard.",
        "encodingFormat": "application/x-parquet",
        "includes": "shards/*.parquet",
    }
    archives = {
        "@type": "cr:FileSet",
        "@id": "archives",
        "name": "archives",
        "description": "WebDataset shards: KEY.jpg (or .png, .webp, .gif), KEY.txt, KEY.json, KEY.cls.",
        "encodingFormat": "application/x-tar",
        "includes": "shards/*.tar",
    }
    images = {
        "@type": "cr:FileSet",
        "@id": "image-files",
        "name": "image-files",
        "description": "The images inside of the shards.",
        "containedIn": [{"@id": tar["@id"]} for tar in tars] or {"@id": "archives"},
        "encodingFormat": list(_IMAGES.values()),
        "includes": [f"*.{extension}" for extension in _IMAGES],
    }
    return [manifest, *tars, indexes, *([] if tars else [archives]), *([images] if numbers["num_shards"] else [])]


def _file(name: str, place: str, num_bytes: int, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": place,
        "contentSize": f"{num_bytes} B",
        "sha256": sha256,
    }


def _samples(numbers: Mapping[str, Any]) -> dict[str, Any]:
    fields = []
    for name, kind in numbers["columns"]:
        found = _type(kind)
        if found is not None:
            fields.append(
                {
                    "@type": "cr:Field",
                    "@id": f"samples/{name}",
                    "name": name,
                    **found,
                    "source": {"fileSet": {"@id": "indexes"}, "extract": {"column": name}},
                }
            )
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "The index: one row a sample.",
        "key": {"@id": "samples/key"},
        "field": fields,
    }


def _images() -> dict[str, Any]:
    source = {"fileSet": {"@id": "image-files"}}
    return {
        "@type": "cr:RecordSet",
        "@id": "images",
        "name": "images",
        "description": "The images, by the key of their sample.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": "images/key",
                "name": "key",
                "dataType": "sc:Text",
                "source": {
                    **source,
                    "extract": {"fileProperty": "filename"},
                    "transform": {"regex": r"([^\/]*)\.[a-z]+"},
                },
                "references": {"field": {"@id": "samples/key"}},
            },
            {
                "@type": "cr:Field",
                "@id": "images/content",
                "name": "content",
                "dataType": "sc:ImageObject",
                "source": {**source, "extract": {"fileProperty": "content"}},
            },
        ],
    }


def _type(kind: pa.DataType) -> dict[str, Any] | None:
    """Return how a column is typed; None of what Croissant has no type for: bytes, and lists of lists."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _type(kind.value_type)
        return None if inner is None or "isArray" in inner else {**inner, "isArray": True, "arrayShape": "-1"}
    if pa.types.is_boolean(kind):
        return {"dataType": "sc:Boolean"}
    if pa.types.is_integer(kind):
        return {"dataType": "sc:Integer"}
    if pa.types.is_floating(kind):
        return {"dataType": "sc:Float"}
    return {"dataType": "sc:Text"} if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None
