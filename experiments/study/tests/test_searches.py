"""What searches decided, from logs that are made up."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.study.searches import agreement, common_flows, goes_on, likeliest, others
from experiments.study.tests.test_analysis import study
from spatialflow.config import load_genotype


def log_of(shares: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a search's log that ends with these probabilities."""
    return [{"probabilities": {}}, {"probabilities": shares}]


def test_searches_agree_by_what_they_prefer_where() -> None:
    one = log_of({"a": [0.1, 0.9], "b": [0.3, 0.7], "c": [0.8, 0.2]})
    # The same, from a search that went less far and in which a penalty favours the first of all.
    same = log_of({"c": [0.844, 0.156], "b": [0.641, 0.359], "a": [0.475, 0.525]})
    reverse = log_of({"a": [0.9, 0.1], "b": [0.7, 0.3], "c": [0.2, 0.8]})
    assert agreement(one, [same]) == "+1.00"
    assert agreement(one, [reverse]) == "-1.00"
    assert abs(float(agreement(one, [same, reverse]))) < 0.01
    assert agreement(one, []) == agreement([], [one]) == ""


def test_a_search_is_compared_with_those_of_its_method() -> None:
    logs = {name: log_of({"a": [0.1, 0.9]}) for name in ("dart_0", "dart_1", "dart_x_0")}
    assert others("dart_0", logs) == [logs["dart_1"]]
    assert likeliest(logs["dart_0"]) == 0.9


def test_flows_that_searches_have_in_common(tmp_path: Path) -> None:
    # The example's searches all have the human flows less the first.
    first, *rest = load_genotype("spatialflow").flows
    head, rows = common_flows([study(tmp_path, "nuclei")])
    assert head == ["flow", "spatialflow", "nuclei"]
    assert f"{first.source} → {first.target}" not in {row[0] for row in rows}
    assert [row[1:] for row in rows[:-1]] == [["yes", "3"]] * len(rest)
    assert rows[-1] == ["any flow", "", f"{3 * len(rest) / 36:.1f}"]


def test_a_search_that_goes_on_is_told_from_one_that_turns_back() -> None:
    def walk(*logits: tuple[float, ...]) -> list[dict[str, Any]]:
        logs = [np.exp([(x, -x) for x in line]) for line in logits]
        return [
            {
                "probabilities": dict(
                    zip("abc", (two / two.sum(axis=1, keepdims=True)).tolist(), strict=True)
                )
            }
            for two in logs
        ]

    # What a penalty does to all edges alike is no direction: the last numbers are shifted.
    on = walk((0, 0, 0), (1, 0, -1), (7, 5, 3))
    back = walk((0, 0, 0), (1, 0, -1), (0, 0, 0))
    assert goes_on(on) == "+1.00"
    assert goes_on(back) == "-1.00"
    assert goes_on([]) == goes_on(on[:2]) == ""
