"""Stage 4: raw shards + ledger -> curated shards, metadata cut, faces blurred."""

from headrace.curation.build.config import BuildConfig
from headrace.curation.build.stage import BuildSummary, plan_build, run_build

__all__ = ["BuildConfig", "BuildSummary", "plan_build", "run_build"]
