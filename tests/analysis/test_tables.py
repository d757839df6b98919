"""Tables between the marks of a page."""

import pytest

from spatialflow.analysis.tables import complete, fill


def test_tables_go_between_their_marks():
    page = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n"
    assert fill(page, {"x": "new"}, "p") == "a\n<!-- table: x -->\n\nnew\n\n<!-- end -->\nb\n"
    assert fill(fill(page, {"x": "new"}, "p"), {"x": "new"}, "p") == fill(page, {"x": "new"}, "p")
    assert fill(page + page.replace("x", "y"), {"x": "new"}, "p").endswith(page.replace("x", "y"))
    with pytest.raises(ValueError, match="page.md: tables"):
        fill("nothing", {"x": "new"}, "page.md")


def test_tables_without_a_place_are_named(tmp_path, caplog):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: x -->\n<!-- end -->\n")
    complete([page], {"x": "new", "y": "more"})
    assert "new" in page.read_text()
    assert "['y']" in caplog.text
