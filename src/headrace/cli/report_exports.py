"""What `headrace report` writes beside the page: a map of all rows, a summary to publish."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.curation.report.compare.side import Side
    from headrace.curation.report.config import ReportConfig


def check_exports(exports: dict[str, str]) -> None:
    """Raise ValueError for a name that cannot be written, before anything is."""
    from headrace.curation.report.exports.atlas import check_atlas_name
    from headrace.curation.report.exports.public import check_public_name

    for name, url in exports.items():
        (check_atlas_name if name == "atlas" else check_public_name)(url)


def write_exports(exports: dict[str, str], side: "Side", config: "ReportConfig") -> dict[str, str]:
    """Write what is asked for; return it."""
    from headrace.curation.report.exports.atlas import write_atlas
    from headrace.curation.report.exports.public import public_summary, write_public
    from headrace.curation.stages import crawl_of

    if "atlas" in exports:
        write_atlas(exports["atlas"], side, config)
    if "public" in exports:
        crawl = None if side.explained is None else crawl_of(side.explained.decision.job)
        write_public(exports["public"], public_summary(side, crawl))
    return exports
