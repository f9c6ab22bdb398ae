"""The step `placeholders`: drop every row of a picture whose bytes stand under many different URLs.

Servers give one "not available" picture in place of many that are gone, so its sha256 comes up by the thousand. A
duplicate is kept once; a placeholder is worth nothing even once, so this step stands before `exact_duplicates`.
Pictures of one colour, and those that services are known to give, are told by themselves, one row is enough.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from headrace.curation.select.shuffle import solve_by_key
from headrace.curation.select.step import Bench, Links, Step, StepResult, write_verdict

HOST = "lower(regexp_extract(url, '^[a-zA-Z]+://(?:[^/?#]*@)?([^/:?#]+)', 1))"
"""SQL of the host of a URL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placeholders(Step):
    """Drop every row of a picture whose bytes came from `min_urls` different URLs or more."""

    step: Literal["placeholders"] = "placeholders"
    """The tag of this step."""
    name: str = "placeholders"
    """Name in the ledger and the funnel."""
    min_urls: int = 20
    """Different URLs from which on the same bytes count as a placeholder."""
    min_hosts: int = 1
    """They must also come from so many different hosts: more than 1 spares a shop that shows one picture of its own on
    many pages."""
    single_colour: bool = False
    """Also drop pictures of one colour, by the column of the annotator `image` (reason `single-colour`)."""
    known: bool = False
    """Also drop what services are known to give in place of a picture, by the column of the annotator `image` (reason
    `known-placeholder`)."""

    links: ClassVar[Links] = "none"

    def __post_init__(self) -> None:
        if self.min_urls < 2:
            raise ValueError(f"min_urls must be at least 2, got {self.min_urls}")
        if self.min_hosts < 1:
            raise ValueError(f"min_hosts must be at least 1, got {self.min_hosts}")

    def decides_by(self) -> dict[str, Any]:
        # Settings that were not there before are left out where they change nothing.
        new = {"min_hosts": self.min_hosts > 1, "single_colour": self.single_colour, "known": self.known}
        return {name: value for name, value in Step.decides_by(self).items() if new.get(name, True)}

    def needs_columns(self) -> tuple[str, ...]:
        by_itself = {"single_colour": self.single_colour, "known_placeholder": self.known}
        return ("sha256", "url", *(name for name, asked in by_itself.items() if asked))

    def run(self, bench: Bench) -> StepResult:
        return StepResult(float(self.min_urls), solve_by_key(bench, "sha256", self._drop))

    def _drop(self, bench: Bench) -> dict[str, int]:
        hosts = f"count(DISTINCT {HOST}) AS hosts" if self.min_hosts > 1 else f"{self.min_hosts} AS hosts"
        bench.connection.execute(
            f"""
            CREATE TABLE common AS
            SELECT sha256, count(DISTINCT url) AS urls, {hosts} FROM here WHERE sha256 IS NOT NULL
            GROUP BY sha256 HAVING count(*) >= {self.min_urls} AND urls >= {self.min_urls}
            AND hosts >= {self.min_hosts}
            """
        )
        threshold = f"{self.min_urls}::DOUBLE AS threshold, NULL::VARCHAR AS duplicate_of"
        queries = [
            f"SELECT __row, 'placeholder' AS reason, urls::DOUBLE AS value, {threshold} FROM here JOIN common"
            " USING (sha256)"
        ]
        by_itself = {
            "single-colour": (self.single_colour, "single_colour IS TRUE"),
            "known-placeholder": (self.known, "known_placeholder IS NOT NULL"),
        }
        before = "true"
        for reason, (asked, test) in by_itself.items():
            if asked:
                queries.append(
                    f"SELECT __row, '{reason}', NULL::DOUBLE, NULL::DOUBLE, NULL::VARCHAR FROM here "
                    f"ANTI JOIN common USING (sha256) WHERE {test} AND {before}"
                )
                before = f"({test}) IS NOT TRUE"
        write_verdict(bench, " UNION ALL ".join(queries))
        pictures, most = bench.connection.execute("SELECT count(*), max(urls) FROM common").fetchall()[0]
        bench.connection.execute("DROP TABLE common")
        return {"pictures": int(pictures), "most_urls": int(most or 0)}
