"""Mixture -> order -> read -> decode -> augment -> batch. Stands on `headrace.shards`; no torch but for tensors."""

from headrace.pipeline.augment.config import Augment, RandAugment, RandomErasing, View
from headrace.pipeline.augment.presets import preset_views
from headrace.pipeline.batch import Batch
from headrace.pipeline.errors import SampleError
from headrace.pipeline.labels import Labels
from headrace.pipeline.mapping import MapFunction, Sample
from headrace.pipeline.mixture import Mixture, Segment, Source
from headrace.pipeline.opening import open_stream
from headrace.pipeline.stream import Stream

__all__ = [
    "Augment",
    "Batch",
    "Labels",
    "MapFunction",
    "Mixture",
    "RandAugment",
    "RandomErasing",
    "Sample",
    "SampleError",
    "Segment",
    "Source",
    "Stream",
    "View",
    "open_stream",
    "preset_views",
]
