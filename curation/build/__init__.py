"""Stage 4: raw shards + ledger -> curated shards, metadata cut, faces blurred."""
