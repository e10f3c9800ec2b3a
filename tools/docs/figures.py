"""What stands at each figure: a text for those who cannot see it, and the tables behind it.

The cell that draws says both, as Quarto's options do: `#| fig-alt: …` is the text, and `#| tables: …` names files of
nbs/results, without the tier at their front (`score_atlas_runs` stands for digits_score_atlas_runs.csv and for that
of every other tier). Without a `fig-alt`, a caption in italics right behind the figure is taken.
"""
import json
import re

OPTION = r"^#\|\s*{}:\s*(.+)\n?"
CAPTION = re.compile(r"\*([^*].*?[^*])\*(?:\n|$)", re.DOTALL)
MARKS = re.compile(r"\]\([^)]*\)|[\[\]`*$\\]")


def draws(cell):
    "Whether a cell shows a picture."
    return any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))


def option(cell, name):
    "What the cell says about `name`; None if nothing."
    found = re.search(OPTION.format(name), cell["source"], re.MULTILINE)
    return found[1].strip() if found else None


def caption(cell):
    "The caption with which a cell begins, as plain text; None if it does not."
    found = CAPTION.match(cell["source"]) if cell and cell["cell_type"] == "markdown" else None
    return re.sub(r"\s+", " ", MARKS.sub("", found[1])) if found else None


def tables(names, results):
    "The files of `results` that belong to `names`, in the order of the names."
    return [path for name in names for path in sorted([*results.glob(f"{name}.csv"), *results.glob(f"*_{name}.csv")])]


def describe(nb, page, nbs):
    "Give the notebook's figures their texts and the links to their tables; `page` is its path in the folder `nbs`."
    cells, results = [], "../" * len(page.parent.parts) + "results/"
    for cell, following in zip(nb["cells"], [*nb["cells"][1:], None]):
        cells.append(cell)
        if draws(cell) and not option(cell, "fig-alt") and (text := caption(following)):
            cell["source"] = f"#| fig-alt: {json.dumps(text, ensure_ascii=False)}\n{cell['source']}"
        if found := tables((option(cell, "tables") or "").split(), nbs / "results"):
            links = ", ".join(f"[{path.name}]({results}{path.name})" for path in found)
            cells.append({"cell_type": "markdown", "metadata": {}, "source": f"::: {{.figure-table}}\nthe numbers: {links}\n:::"})
    nb["cells"] = cells
