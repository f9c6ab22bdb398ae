"""Stage 2: raw shards -> columns.

One folder an annotator and its settings, one table a raw shard, in raw order. So a new annotator, or one with other
settings, never computes an old column again. Nothing is dropped here; an image that does not decode has a row, with
`decode_error`.
"""
