"""Stage 1: a URL list becomes raw shards in img2dataset's layout.

Safe by default: nothing of a list is opened but public http(s) addresses. The one thing a reader would get wrong: a
failure is a row too; raw parquets hold every row of the list, in the order of the keyed permutation.
"""

from typing import TYPE_CHECKING

from headrace.curation.engine import OnProgress, no_progress
from headrace.curation.fetch.config import FetchConfig, InputConfig

if TYPE_CHECKING:
    from headrace.curation.fetch.stage import FetchSummary
    from headrace.curation.recipe import Recipe

__all__ = ["FetchConfig", "InputConfig", "plan_fetch", "run_fetch"]


# Imported late: a recipe needs the configs only, not the network.
def plan_fetch(recipe: "Recipe") -> list[str]:
    """Say what fetch would do; nothing is requested or written."""
    from headrace.curation.fetch.stage import plan

    return plan(recipe)


def run_fetch(recipe: "Recipe", *, on_progress: OnProgress = no_progress, retry_failed: bool = False) -> "FetchSummary":
    """Fetch what is not fetched yet; with `retry_failed` then try failures again, into new raw shards."""
    from headrace.curation.fetch.stage import run

    return run(recipe, on_progress=on_progress, retry_failed=retry_failed)
