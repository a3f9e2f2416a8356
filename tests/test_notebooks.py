"""The notebooks run, and show images."""

import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples/notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def images_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    return [output for output in outputs if "image/jpeg" in output.get("data", {})]


def test_there_is_a_notebook_for_each_subject():
    assert NOTEBOOKS == ["automatic_masks", "fine_tuned_inference", "fine_tuning", "prompting", "video"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_is_stored_with_its_images(name, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed")
    nbformat = pytest.importorskip("nbformat")
    for folder in ("images", "videos"):
        shutil.copytree(FOLDER.parent / folder, tmp_path / folder)
    (tmp_path / "notebooks").mkdir()
    stored, notebook = (nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for _ in range(2))
    options = {"allow_errors": False, "resources": {"metadata": {"path": str(tmp_path / "notebooks")}}}
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", **options).execute()
    for cell in notebook.cells:  # a library may warn of what is not installed
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    assert len(images_of(stored)) == len(images_of(notebook)) > 0
