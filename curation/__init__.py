"""URL list -> fetch -> annotate -> select -> build -> report. Stands on `headrace.shards` only."""
