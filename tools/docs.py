"""Build the site into _docs/ without Quarto: nbdev processes the notebooks, smalldocs makes the pages.

Where Quarto is installed, nbdev_docs builds the same pages from the same files. What this script does itself is
what Quarto would do: pages lose the number in their name (00_core.ipynb becomes core.html), and links follow.
Links between pages become relative and KaTeX is put beside the pages, so that the site works offline.
"""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

KATEX = "katex@0.16.11"  # the version that smalldocs 0.5.4 links to
NUMBERED = re.compile(r"\d+[a-zA-Z0-9]*_(?=[^/]+\.ipynb)")  # as nbdev names the page of a notebook


def page_name(name):
    "The name under which a notebook's page is published."
    return NUMBERED.sub("", name.lower())


def rename(stage):
    "Give the staged notebooks, and the sidebar's entries for them, the names of their pages."
    for path in [*stage.rglob("*.ipynb")]: path.rename(path.with_name(page_name(path.name)))
    for path in stage.rglob("*.yml"): path.write_text(NUMBERED.sub("", path.read_text()))


def relink(stage, site):
    "Make links to notebooks and to pages of `site` relative, and lead them to the renamed pages."
    link = re.compile(r"\]\(([^()\s:]+\.ipynb)")
    for path in stage.rglob("*.ipynb"):
        nb = json.loads(path.read_text())
        root = "../" * len(path.relative_to(stage).parent.parts)
        for cell in nb["cells"]:
            if cell["cell_type"] == "raw": cell["source"] = re.sub(r"output-file: .*\n", "", "".join(cell["source"]))
            texts = [cell, *(o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {}))]
            for text in texts:
                key = "source" if text is cell else "text/markdown"
                new = "".join(text[key]).replace(site + "/", root)
                if text is not cell or cell["cell_type"] == "markdown":
                    new = link.sub(lambda m: "](" + page_name(m[1]), new)
                text[key] = new
        path.write_text(json.dumps(nb))


def katex(cache):
    "The folder of KaTeX's files, fetched with npm when it is not there yet; None where that cannot be done."
    dist = cache / "node_modules/katex/dist"
    if not dist.exists() and shutil.which("npm"):
        subprocess.run(["npm", "install", "--silent", "--no-save", "--prefix", cache, KATEX])
    return dist if dist.exists() else None


def bundle(dist, pages):
    "Put KaTeX beside the pages and let them use it."
    unused = shutil.ignore_patterns("*.mjs", "README*", "*.ttf", "*.woff", "katex.css", "katex.js", "katex-swap*")
    shutil.copytree(dist, pages / "site_libs/katex", ignore=unused)
    for path in pages.rglob("*.html"):
        root = "../" * len(path.relative_to(pages).parent.parts)
        text = path.read_text()
        path.write_text(re.sub(r"https://cdn\.jsdelivr\.net/npm/katex@[^/]*/dist/", root + "site_libs/katex/", text))


if __name__ == "__main__":
    config = get_config()
    refresh_quarto_yml()
    stage = config.config_path / "_stage"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(proc_nbs(n_workers=2, force=True), stage)
    rename(stage)
    relink(stage, f"{config.doc_host}{config.doc_baseurl}")
    smalldocs = Path(sys.executable).with_name("smalldocs")
    subprocess.run([smalldocs, "render", stage], check=True)
    shutil.rmtree(config.doc_path, ignore_errors=True)
    shutil.move(stage / config.doc_path.name, config.doc_path)
    shutil.rmtree(stage)
    dist = katex(config.config_path / ".cache")
    if dist: bundle(dist, config.doc_path)
    else: print("KaTeX could not be fetched (npm is missing or offline): equations on these pages need the network")
    print(f"the site is in {config.doc_path}: open {config.doc_path / 'index.html'}")
