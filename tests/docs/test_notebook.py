import nbformat
import pytest
from nbclient import NotebookClient

# A kernel imports torch anew, which may take minutes on a machine that does something else.
pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture
def notebook(repository):
    return nbformat.read(repository / "notebooks" / "01_predict.ipynb", as_version=4)


@pytest.mark.parametrize("name", ["01_predict", "02_search"])
def test_notebook_is_committed_without_outputs(repository, name):
    notebook = nbformat.read(repository / "notebooks" / f"{name}.ipynb", as_version=4)
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


def test_search_notebook_searches_and_draws(repository, tmp_path, monkeypatch):
    notebook = nbformat.read(repository / "notebooks" / "02_search.ipynb", as_version=4)
    monkeypatch.setenv("SPATIALFLOW_OUTPUT", str(tmp_path / "search"))
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    few = "SOLVER.MAX_ITER 3 SEARCH.WARMUP 0.0 DATASETS.SCENES.TRAIN 12 DATASETS.SCENES.VAL 1"
    monkeypatch.setenv("SPATIALFLOW_OPTIONS", few + " SEARCH.PERTURBATION_BATCHES 1")
    NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(repository / "notebooks")}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "36 edges: " in text
    assert "held-out loss: {'supernet': " in text
    pictures = [kind for output in outputs for kind in output.get("data", {})]
    assert pictures.count("image/svg+xml") == 2
    assert pictures.count("image/png") == 1
