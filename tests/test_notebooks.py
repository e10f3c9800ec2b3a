"""Every notebook runs from top to bottom, as nbdev_test runs it."""
import pytest

from conftest import NOTEBOOKS, run, tool


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook(notebook, shared_project):
    run(tool("nbdev_test"), "--path", notebook, "--n_workers", "0", cwd=shared_project, PYTHONPATH=shared_project)
