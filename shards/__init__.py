"""The dataset on disk: tar shards, their index, commit records, the manifest. No torch, no network policy."""
