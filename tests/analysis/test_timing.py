"""Functions are timed in turn, and times are compared by their medians."""

from spatialflow.analysis.timing import compare_times, time_in_turn


def test_functions_are_called_in_turn_and_the_first_round_does_not_count():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_in_turn(works, rounds=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_times_are_compared_by_their_medians():
    found = compare_times("step", [3.0, 2.0, 9.0], [1.0, 2.0, 1.5])
    assert found == {"step": 2.0, "step seconds": [3.0, 2.0, 9.0]}
