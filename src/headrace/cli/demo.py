"""`headrace demo`: the whole way over a small web with a known truth."""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headrace.demo.truth import Row

OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; an earlier demo is replaced.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the web; a fresh one if not given.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Draw the web and say what it holds; write nothing.")]


def demo_command(
    out: OutOption = Path("headrace-demo"), seed: SeedOption = None, dry_run: DryRunOption = False
) -> None:
    """Curate a small web whose truth is known, train on it, and show what was found and what was missed.

    A local server, a few hundred drawn pictures and planted faults; the real commands run over it. Exit code 1 if a
    hard promise is broken: an evaluation image kept, a private address reached, a row lost.

    Example: headrace demo --out demo --seed 7
    """
    console = Console()
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console.print(f"seed {seed}")
    from headrace.demo.run import check_folder, run_demo

    check_folder(out)
    if dry_run:
        _show_plan(console, seed)
        return
    started = time.monotonic()

    def on_step(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.0f} s[/dim]  {text}", highlight=False)

    result = run_demo(out, seed=seed, on_step=on_step)
    console.print(_as_table(result.rows))
    console.print(f"kept {result.data['num_kept']} of {result.data['num_rows']} rows in {result.data['seconds']:.0f} s")
    console.print(f"probe on the frozen trunk: {100 * result.data['probe_accuracy']:.1f} % of colours (chance 12.5 %)")
    for name in ("report", "dataset", "checkpoint"):
        console.print(f"{name}: {result.data[name]}", soft_wrap=True, highlight=False)
    broken = [name for name, held in result.promises.items() if not held]
    if broken:
        raise ValueError(f"the demo broke a promise; not true: {'; '.join(broken)}")


def _show_plan(console: Console, seed: int) -> None:
    from collections import Counter

    from headrace.demo.web import plan_site

    site = plan_site(seed)
    faults = Counter(entry.kind for entry in site.entries if entry.fault)
    others = Counter(entry.kind for entry in site.entries if not entry.fault)
    for kind in sorted(faults | others):
        console.print(f"{kind}: {faults[kind]} faults, {others[kind]} to survive", highlight=False)
    console.print(f"would serve {len(site.entries)} rows on loopback, curate them and train; nothing was written")


def _as_table(rows: Sequence["Row"]) -> Table:
    table = Table("kind", title="Planted and found")
    for name in ("planted", "found", "missed", "wrongly dropped"):
        table.add_column(name, justify="right")
    for row in rows:
        style = "yellow" if row.missed or row.wrongly_dropped else ""
        table.add_row(
            row.kind, str(row.planted), str(row.found), str(row.missed), str(row.wrongly_dropped), style=style
        )
    return table
