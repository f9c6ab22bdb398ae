"""Stage 5: the ledger and the index as numbers, plots and pictures in one HTML file."""

from headrace.curation.report.config import ReportConfig
from headrace.curation.report.stage import (
    ReportSummary,
    config_of,
    explain_recipe,
    plan_report,
    report_dataset,
    report_folder,
    report_job,
    run_report,
)

__all__ = [
    "ReportConfig",
    "ReportSummary",
    "config_of",
    "explain_recipe",
    "plan_report",
    "report_dataset",
    "report_folder",
    "report_job",
    "run_report",
]
