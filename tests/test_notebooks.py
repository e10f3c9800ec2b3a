"""Every notebook runs from top to bottom, as nbdev_test runs it, and is small enough to be read and compared."""
import json

import pytest

from conftest import NOTEBOOKS, ROOT, run, tool

# kB of outputs in a notebook; more than the usual only with a reason
USUAL, LARGER = 150, {
    "nbs/benchmarks/10_gradnorm.ipynb": (200, "two figures of twenty bars for three networks each, and a grid for each kind of convolution"),
    "nbs/experiments/60_score_atlas.ipynb": (400, "every score with every other for each tier, the images at both ends, and a gallery"),
}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook(notebook, shared_project):
    run(tool("nbdev_test"), "--path", notebook, "--n_workers", "0", cwd=shared_project, PYTHONPATH=shared_project)


def test_outputs_are_small():
    cells = {name: json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"] for name in NOTEBOOKS}
    sizes = {name: sum(len(json.dumps(cell.get("outputs", []))) for cell in found) / 1000 for name, found in cells.items()}
    too_large = {name: f"{size:.0f} kB" for name, size in sizes.items() if size > LARGER.get(name, (USUAL,))[0]}
    assert not too_large, "save with tools/run_notebook.py, draw smaller, or say in LARGER why not"
