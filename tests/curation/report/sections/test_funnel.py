"""The funnel of the page, from the summary of a ledger."""

from headrace.curation.report.sections import funnel


def test_what_a_step_says_by_distance_is_in_the_order_of_the_distances() -> None:
    step = {
        "name": "near", "rows_in": 3, "rows_out": 3, "threshold": 20, "dropped": {}, "effects": [],
        "details": {"expected_recall": {"16": 1.0, "20": 0.5, "8": 1.0}, "groups": 2},
    }  # fmt: skip
    text = funnel._details([step])
    places = [text.index(f"expected recall, {distance}<") for distance in (8, 16, 20)]
    assert places == sorted(places)
