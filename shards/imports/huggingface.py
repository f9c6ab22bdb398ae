"""What the `datasets` library of Hugging Face writes into a parquet footer: the names of classes."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Return the names of a ClassLabel column, by label; empty where the footer has none."""
    names = _features(schema).get(column, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _features(schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
