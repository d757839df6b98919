import nbformat
import pytest
from nbclient import NotebookClient

# A kernel imports torch anew, which may take minutes on a machine that does something else.
pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture
def notebook(repository):
    return nbformat.read(repository / "notebooks" / "01_predict.ipynb", as_version=4)


def test_notebook_is_committed_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_notebook_runs_after_the_demo(notebook, after_demo, repository, monkeypatch):
    monkeypatch.setenv("SPATIALFLOW_RUN", str(after_demo / "output" / "demo"))
    folder = str(repository / "notebooks")
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "things: disc, ring, square, triangle, star" in text
    assert "score 0." in text
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_notebook_says_what_to_run_first(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALFLOW_RUN", str(tmp_path))
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(FileNotFoundError, match="run `make demo` first"):
        exec(first, {})
