"""Raw shards: what fetch writes and every later stage reads, in img2dataset's layout."""
