"""Mixture -> order -> read -> decode -> augment -> batch. Stands on `headrace.shards`; numpy only, no torch."""

from headrace.pipeline.batch import Batch
from headrace.pipeline.mixture import Augment, Mixture, Segment, Source, View
from headrace.pipeline.opening import open_stream
from headrace.pipeline.stream import Stream

__all__ = ["Augment", "Batch", "Mixture", "Segment", "Source", "Stream", "View", "open_stream"]
