"""The model zoo's page is what its figures give, and its configs exist."""

import json

from spatialflow.config import find_config
from tools.model_zoo import PAGE, SOURCE, render


def test_the_page_is_that_of_the_figures():
    assert PAGE.read_text() == render(json.loads(SOURCE.read_text()))


def test_every_model_has_its_config():
    content = json.loads(SOURCE.read_text())
    names = [x["config"] for x in (*content["measured"], *content["reported"])]
    for name in (*names, *content["not_run"]):
        assert find_config(name).is_file()
