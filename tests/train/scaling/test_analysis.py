"""What a set of runs says: verdicts as the study gives them, a held-out run predicted, the best size for FLOPs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.train.scaling.analysis import analyse
from headrace.train.scaling.collect import RunRow, read_table
from headrace.train.scaling.isoflop import growth, optima
from headrace.train.scaling.overfitting import judge
from headrace.train.scaling.page import render
from tests.train.scaling.test_fits import TABLE


def test_the_published_runs_over_fit_where_the_study_says() -> None:
    verdicts = judge(read_table(TABLE))
    overfit = {name for name, verdict in verdicts.items() if verdict.word == "over-fits"}
    assert {"SwinV2-S IN-1k-10% 500k", "SwinV2-H IN-1k-20% 250k", "SwinV2-g IN-1k-50% 500k"} <= overfit
    assert not any("IN-1k " in name or "IN-22k" in name for name in overfit)


def test_a_held_out_run_is_predicted_from_the_others() -> None:
    (found,) = analyse(read_table(TABLE), hold_out="SwinV2-g IN-1k 500k")
    by_size = next(one for one in found.predictions if one.law.startswith("validation loss by parameters (samples"))
    assert by_size.measured == 0.4395
    assert by_size.inside
    assert abs(by_size.missed_by) < 0.002
    assert b"SwinV2-g IN-1k 500k" in render([found], title="x")


def test_a_run_is_judged_by_its_own_curve() -> None:
    def run(name: str, *losses: float) -> RunRow:
        return RunRow(name=name, validation_loss=losses[-1], curve=tuple(enumerate(losses, start=1)))

    verdicts = judge([run("up", 1.0, 0.5, 0.6), run("down", 1.0, 0.9, 0.8, 0.7), run("flat", 1, 0.5, 0.5, 0.5)])
    assert [verdict.word for verdict in verdicts.values()] == ["over-fits", "still falling", "settled"]
    assert (verdicts["up"].best_loss, verdicts["up"].best_step) == (0.5, 2)
    # Two looks, at half and at the end: the last is not compared with itself.
    (one,) = judge([run("short", 1.0, 0.5)]).values()
    assert (one.word, one.why) == ("still falling", "50.0% under that of step 1")


def test_losses_of_different_objectives_are_never_put_together() -> None:
    rows = [RunRow(name=f"{kind}{n}", objective=kind, parameters=n) for kind in ("aim", "simmim") for n in (1, 2)]
    assert [[row.name for row in one.rows] for one in analyse(rows)] == [["aim1", "aim2"], ["simmim1", "simmim2"]]


def test_the_best_size_for_the_same_operations_is_found() -> None:
    # Losses with the lowest point at N = C ^ 0.5, whatever C.
    rows = [
        RunRow(
            name=f"{flops:g}-{ratio}",
            flops=flops,
            parameters=round(flops**0.5 * ratio),
            validation_loss=1 + 0.1 * np.log(ratio) ** 2,
        )
        for flops in (1e12, 1e13, 1e14)
        for ratio in (0.5, 1, 2, 4)
    ]
    found, notes = optima(rows)
    assert [one.parameters for one in found] == pytest.approx([1e6, 1e6 * 10**0.5, 1e7], rel=1e-3)
    assert growth(found).exponent == pytest.approx(0.5, abs=1e-3)
    assert notes == []
    # Of half the samples the best sizes are others, and fewer: they bend no line.
    fewer = [replace(row, name=f"half {row.name}", samples=50, parameters=8 * row.parameters) for row in rows[:8]]
    both, _ = optima([replace(row, samples=100) for row in rows] + fewer)
    assert len(both) == 5
    assert growth(both) == replace(growth(found), among="100 samples")
    assert all(one.interval.low == pytest.approx(one.parameters, rel=1e-3) for one in found), "nothing is left over"


def test_95_of_100_intervals_hold_the_best_size() -> None:
    rng = np.random.default_rng(3)
    sizes = [10**power for power in (6.0, 6.5, 7.0, 7.5, 8.0)]
    held = told = 0
    for _ in range(300):
        losses = [1 + 0.02 * np.log(size / 2e7) ** 2 + 0.003 * rng.standard_normal() for size in sizes]
        rows = [
            RunRow(name=str(n), flops=1e15, parameters=round(size), validation_loss=loss)
            for n, (size, loss) in enumerate(zip(sizes, losses, strict=True))
        ]
        ((best,), _) = optima(rows)
        if best.interval is not None:
            told += 1
            held += best.interval.low <= 2e7 <= best.interval.high
    assert told == 300
    assert 0.92 * told < held < 0.98 * told
    ((best,), _) = optima(rows[:3])
    assert best.interval is None, "three runs leave nothing to judge the noise by"


@pytest.mark.parametrize(
    "field",
    [{"objective": "simmim"}, {"setting": "image_size=32; patch=8"}, {"samples": 500}],
    ids=lambda one: str(one),
)
def test_runs_that_differ_in_more_than_size_are_on_no_parabola_together(field: dict[str, str | int]) -> None:
    own = {"objective": "aim", "setting": "image_size=32; patch=4", "samples": 100}
    others = own | field

    def run(name: str, size: int, loss: float, facts: dict[str, str | int]) -> RunRow:
        return RunRow(name=name, flops=1e12, parameters=size, validation_loss=loss, **facts)  # type: ignore[arg-type]

    one = [run("a1", 1, 1.2, own), run("a2", 2, 1.0, own)]
    two = [run("b3", 3, 0.1, others)]
    found, (note,) = optima(one + two)
    assert found == []
    assert "a1, a2 (" in note
    assert "b3 (" in note
    assert all(str(value).split("; ")[-1] in note.replace(",", "") for value in field.values())
    whole = [*one, run("a3", 4, 1.1, own)]
    ((best,), notes) = optima(whole + two)
    assert (best.runs, notes) == (("a1", "a2", "a3"), [])


def test_runs_of_other_settings_are_in_no_law_together() -> None:
    rows = [
        RunRow(name=f"{patch}-{size}", parameters=size, validation_loss=patch + size**-0.5, setting=f"patch={patch}")
        for patch in (1, 2)
        for size in (10, 100, 1000, 10000, 100000)
    ]
    (found,) = analyse(rows, hold_out="2-100000")
    laws = [law for law in found.laws if law.title == "validation loss by parameters"]
    assert [(law.held_equal, len(law.runs)) for law in laws] == [("patch=1", 5), ("patch=2", 5)]
    assert [law.fit.numbers["c"] for law in laws] == pytest.approx([1, 2], abs=1e-6)
    assert [one.predicted for one in found.predictions] == pytest.approx([2 + 100000**-0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,size\na,1\n", "line 1: unknown column 'size'; known: name, objective, parameters"),
        ("parameters\n1\n", "line 1: no column 'name'"),
        ("name,parameters\na,many\n", "line 2: parameters: expected a number, got 'many'"),
        ("name,parameters\na,-1\n", "line 2: parameters: expected a finite number above zero, got '-1'"),
        ("name,accuracy\na,84.1\n", "line 2: accuracy: expected a share within 0..1, got '84.1'; 84.1 % is 0.841"),
        ("name,accuracy\na,nan\n", "line 2: accuracy: expected a finite number above zero, got 'nan'"),
        ("name,accuracy\na\n", "line 2: not as many cells as the header has"),
        ("name\na\na\n", "two runs are called 'a'"),
        ("", "line 1: no column 'name'"),
        ("name,val_loss\na,1\n", "unknown column 'val_loss'; did you mean 'validation_loss'? known: name"),
        ("name,steps,steps\na,1,2\n", "line 1: the column 'steps' is there twice"),
        ("name,steps\n ,1\n", "line 2: the name is empty"),
        ("name,steps\n", "no run in it"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ValueError, match=r"runs\.csv") as error:
        read_table(tmp_path / "runs.csv")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_without_a_loss_are_told() -> None:
    (found,) = analyse([RunRow(name="a", parameters=1, validation_loss=1.0), RunRow(name="b", parameters=2)])
    assert "1 of 2 runs have no validation loss and are in no law of it" in found.notes


def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_bytes(b"\xef\xbb\xbfname,steps\r\na,7\r\n")
    assert read_table(tmp_path / "runs.csv") == [RunRow(name="a", steps=7)]


def test_a_run_that_is_not_there_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="no run is called 'x'; there are a"):
        analyse([RunRow(name="a")], hold_out="x")
    (found,) = analyse([RunRow(name="a", parameters=1), RunRow(name="b")], hold_out="a")
    assert "a cannot be held out: its validation loss or its parameters are not known" in found.notes
