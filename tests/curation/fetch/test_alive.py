"""What of a list is alive, counted once a row, and two runs side by side."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.curation.fetch import alive as counting
from headrace.curation.fetch.alive import compare, hosts_of, read_alive, year_of
from headrace.curation.fetch.config import InputConfig
from headrace.curation.stages import fetch as run_fetch


def run_job(server: Any, web: Any, tmp_path: Path, name: str) -> Any:
    rows = [
        {"url": server.url(f"/{number}.jpg"), "caption": "a", "date": f"{2014 + number % 2}-03-01"}
        for number in range(9)
    ]
    rows += [{"url": "http://u:p@x.example/a.jpg", "caption": "a", "date": None}, {"caption": "a", "date": "20145"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = web.config_for(server, samples_per_shard=4)
    recipe = web.recipe_for(tmp_path / name, tmp_path / "l.jsonl", config, columns=("date",), date_column="date")
    run_fetch(recipe)
    return recipe


def test_rows_are_counted_by_class_host_and_year_and_a_retried_one_is_alive(
    server, web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.answers["/1.jpg"] = server.answers["/2.jpg"] = web.reply(status="503 Busy")
    recipe = run_job(server, web, tmp_path, "first")
    report = read_alive(recipe.job)
    assert (report["rows"], report["alive"]) == (11, 6)
    assert report["classes"] == {"bad-url": 2, "http-4xx": 1, "http-5xx": 2}
    assert report["years"] == {
        "(no year)": {"rows": 2, "alive": 0, "classes": {"bad-url": 2}},
        "2014": {"rows": 5, "alive": 3, "classes": {"http-4xx": 1, "http-5xx": 1}},
        "2015": {"rows": 4, "alive": 3, "classes": {"http-5xx": 1}},
    }
    assert [(item["host"], item["rows"]) for item in report["hosts"]] == [
        ("127.0.0.1", 9), ("(no host)", 1), ("x.example", 1)
    ]  # fmt: skip
    (tmp_path / "kept.json").write_bytes((tmp_path / "first/report/fetch.json").read_bytes())
    server.answers["/1.jpg"] = web.reply(web.jpeg(1))
    run_fetch(recipe, retry_failed=True)
    later = read_alive(recipe.job)
    assert (later["rows"], later["alive"], later["retried"]) == (11, 7, 1)
    assert later["classes"]["http-5xx"] == 1
    # What has not changed is not counted again.
    monkeypatch.setattr(counting, "count_alive", None)
    run_fetch(recipe)

    told = CliRunner().invoke(app, ["fetch-report", recipe.job])
    assert told.output.splitlines()[1].split()[:4] == ["all", "11", "7", "63.6%"]
    assert "year 2014" in told.output
    told = CliRunner().invoke(app, ["fetch-report", str(tmp_path / "kept.json"), recipe.job])
    assert next(line for line in told.output.splitlines() if line.startswith("alive")).split()[-3:] == [
        "54.5%", "63.6%", "+9.1"
    ]  # fmt: skip
    told = CliRunner().invoke(app, ["fetch-report", str(tmp_path / "kept.json"), recipe.job, "--json"])
    changes = {(change["kind"], change["name"]): change for change in json.loads(told.output)["changes"]}
    assert changes["year", "2015"]["after"] == 1.0
    assert changes["host", "127.0.0.1"]["rows_after"] == 9


def test_the_largest_changes_of_hosts_come_first() -> None:
    def report(**alive: int) -> dict[str, Any]:
        hosts = [{"host": host, "rows": 10, "alive": count} for host, count in alive.items()]
        total = {"rows": 10 * len(alive), "alive": sum(alive.values())}
        return {**total, "classes": {}, "years": {}, "hosts": hosts}

    changes = compare(report(a=10, b=9, c=1), report(a=9, b=1, d=4))
    assert [(change.kind, change.name) for change in changes] == [("alive", "alive"), ("host", "b"), ("host", "a")]
    assert changes[1].difference == pytest.approx(-0.8)


def test_few_hosts_are_exact_and_many_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_HOSTS", 8)
    found = counting.Alive()
    for start in range(0, 40, 10):
        urls = [f"http://h{number}.example/" for number in range(start, start + 10)] + ["http://big.example/"] * 30
        null = pa.nulls(len(urls), pa.string())
        table = pa.table({"error_class": null, "reused_from": null, "url": urls})
        counting._count(found, table, set(), None)
    assert len(found.hosts) <= 9
    told = counting.as_json(found, "")
    assert (told["hosts"][0]["host"], told["hosts"][0]["rows"]) == ("big.example", 120)
    assert sum(item["rows"] for item in told["hosts"]) + told["other_hosts"]["rows"] == 160
    assert not told["hosts_are_exact"]


def test_hosts_and_years_are_read_from_what_stands_there() -> None:
    urls = ["HTTP://A.Example:80/x", "https://u:p@b.example/", "http://[::1]:8/", "what", None, "http://c?q=//d"]
    assert hosts_of(pa.chunked_array([urls])) == ["a.example", "b.example", "[::1]", "(no host)", "(no host)", "c"]
    values = ["2014-01-02", 2015, "20140102", "03/2016", None, "1789", "x1999y"]
    assert [year_of(value) for value in values] == [
        "2014", "2015", "2014", "2016", "(no year)", "(no year)", "1999"
    ]  # fmt: skip


@pytest.mark.parametrize("text", [None, "[]", "{}", '{"schema": 9}', '{"schema": 1, "classes": {}}'])
def test_what_is_no_report_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "job/report").mkdir(parents=True)
        (tmp_path / "job/report/fetch.json").write_text(text)
    with pytest.raises(ValueError, match=r"report/fetch\.json: .*(no fetch report|not a fetch report|damaged)"):
        read_alive(str(tmp_path / "job"))


def test_a_date_that_is_not_carried_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'when' is not carried; name it in input\.columns too"):
        InputConfig(urls=("a.csv",), date_column="when")
