"""The step `host_cap`: of each host keep so many rows."""

from dataclasses import dataclass
from typing import Literal

from headrace.curation.select.load import IDENTITY
from headrace.curation.select.step import Bench, Step, StepResult, write_verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class HostCap(Step):
    """Of each host keep at most `rows`, by uid."""

    step: Literal["host_cap"] = "host_cap"
    """The tag of this step."""
    name: str = "host_cap"
    """Name in the ledger and the funnel."""
    rows: int = 1000
    """Rows that one host may have."""

    def needs_columns(self) -> tuple[str, ...]:
        return (*IDENTITY, "url")

    def run(self, bench: Bench) -> StepResult:
        host, order = "split_part(url, '/', 3)", ", ".join(IDENTITY)
        write_verdict(
            bench,
            f"""
            SELECT __row, 'host-full' AS reason, place::DOUBLE AS value, {self.rows}::DOUBLE AS threshold,
                NULL::VARCHAR AS duplicate_of
            FROM (SELECT __row, row_number() OVER (PARTITION BY {host} ORDER BY {order}) AS place FROM here)
            WHERE place > {self.rows}
            """,
        )
        return StepResult(float(self.rows))
