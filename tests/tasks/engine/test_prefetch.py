"""What a run says is to come."""

from tasks.engine import prefetch


def test_what_is_to_come_is_reckoned_by_what_each_step_took() -> None:
    taken = {"train": [60.0, 0.0, 180.0], "evaluate": [30.0], "mask": [0.0]}  # 0 s: MLflow had it
    outlook = prefetch.Outlook({"train": 3, "evaluate": 2, "mask": 1, "compare": 1}, taken)
    assert str(outlook) == (
        "12 cells, 5 of them cached. To compute, unless MLflow has it: 3 train, 2 evaluate, 1 mask, 1 compare;"
        " 0:07:00 of work at the pace of the cached train, evaluate."
    )
    assert str(prefetch.Outlook({"train": 2}, {})).endswith(" To compute, unless MLflow has it: 2 train.")
