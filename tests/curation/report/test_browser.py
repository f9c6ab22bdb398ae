"""The report in a real browser: offline, without an error, without a request; tables sort and search."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.curation.job import Job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.curation.stages import report as run_report


def _load_browser() -> Any:
    # Test folders are no packages, so a helper beside a test is loaded by its path.
    spec = importlib.util.spec_from_file_location("report_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_browser"] = module
    spec.loader.exec_module(module)
    return module


browser = _load_browser()

SHOW_ALL = """(async () => {
  const images = Array.from(document.images);
  for (const image of images) { image.loading = "eager"; await image.decode(); }
  return images.filter((image) => image.naturalWidth > 0).length;
})()"""
SORT = """(() => {
  const table = Array.from(document.querySelectorAll("table")).find((t) => t.textContent.includes("host0.test"));
  const column = Array.from(table.tHead.rows[0].cells).findIndex((c) => c.textContent.startsWith("kept"));
  table.tHead.rows[0].cells[column].querySelector("button").click();
  const up = Array.from(table.tBodies[0].rows).map((r) => Number(r.cells[column].textContent));
  table.tHead.rows[0].cells[column].querySelector("button").click();
  const down = Array.from(table.tBodies[0].rows).map((r) => Number(r.cells[column].textContent));
  return [up, down, table.tHead.rows[0].cells[column].getAttribute("aria-sort")];
})()"""
SEARCH = """(() => {
  const find = document.querySelector(".find");
  const input = find.querySelector("input");
  input.value = "FETCH http";
  input.dispatchEvent(new Event("input"));
  const rows = Array.from(find.parentElement.querySelectorAll("tbody tr"));
  return [find.hidden, rows.filter((r) => !r.hidden).map((r) => r.cells[0].textContent), rows.length];
})()"""


async def _overflow(tab: Any, width: int) -> int:
    """Return by how many pixels the page is wider than a window of `width`."""
    await tab.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    return int(await tab.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


async def _visit(url: str, profile: Path) -> dict[str, Any]:
    async with browser.open_browser(profile) as tab:
        for domain in ("Page", "Network", "Log", "Runtime"):
            await tab.send(f"{domain}.enable")
        await tab.send("Page.navigate", url=url)
        await tab.wait_for("Page.loadEventFired")
        found = {
            "title": await tab.evaluate("document.title"),
            "images": await tab.evaluate(SHOW_ALL),
            "sort": await tab.evaluate(SORT),
            "search": await tab.evaluate(SEARCH),
            "wide": [await _overflow(tab, width) for width in (1200, 360)],
            "foreign": await tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'allowed', () => 'refused')"),
        }
        requests = [event["request"]["url"] for event in tab.of("Network.requestWillBeSent")]
        complaints = tab.of("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return {**found, "requests": requests, "complaints": complaints}


@pytest.mark.full
def test_the_report_opens_offline_sorts_and_searches(
    make_job: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The small job's tables are short; every one of them gets its search field here.
    monkeypatch.setattr("headrace.page.html.SEARCHABLE_ROWS", 2)
    recipe = make_job()
    run_build(recipe)
    summary = run_report(recipe)
    page = Path(Job(recipe.job).report, "report.html")
    found = asyncio.run(_visit(page.as_uri(), tmp_path / "profile"))
    assert found["title"] == "Curation report"
    assert found["images"] == summary.num_pictures > 20
    outside = [url for url in found["requests"] if not url.startswith("data:")]
    # The page itself, and the fetch that this test tried and the policy refused before it became a request.
    assert outside == [page.as_uri()]
    assert found["foreign"] == "refused"
    unexpected = [item for item in found["complaints"] if "127.0.0.1:9" not in str(item)]
    assert unexpected == []
    up, down, direction = found["sort"]
    assert up == sorted(up) != down == sorted(down, reverse=True)
    assert direction == "descending"
    hidden, shown, total = found["search"]
    assert not hidden
    assert shown == ["fetch"]
    assert total == 6
    assert max(found["wide"]) <= 0
