"""Build the site into _docs/ without Quarto: `python tools/docs`, or `make docs`.

    nbs/*.ipynb --nbdev--> _proc/ --these files--> _stage/ --smalldocs--> _docs/

nbdev runs the imports of every notebook and writes the documentation of what it exports. Then each notebook goes
through the steps below, smalldocs makes a page of it, and what pages would fetch from elsewhere is put beside them.

    names.py     a page's name, as Quarto would give it, and links that follow
    api.py       signatures that can be read, and tables of arguments
    figures.py   what stands at each figure: a text for those who cannot see it, and the tables behind it
    source.py    at the top of each page: where its notebook is, and how to run it
    offline.py   equations, fonts and search without a network

Where Quarto is installed, nbdev_docs makes the same pages from the same notebooks, without what these files add.
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import api
import figures
import names
import offline
import source
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs


def build():
    "Build the site, and return its folder."
    config = get_config()
    stage, site = config.config_path / "_stage", config.doc_path
    refresh_quarto_yml()
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(proc_nbs(n_workers=2, force=True), stage)
    for path in sorted(stage.rglob("*.ipynb")):
        nb, page = json.loads(path.read_text(encoding="utf-8")), path.relative_to(stage)
        for cell in nb["cells"]: cell["source"] = "".join(cell["source"])
        names.relink(nb, page, f"{config.doc_host}{config.doc_baseurl}")
        api.tabulate(nb)
        figures.describe(nb, page, config.nbs_path)
        source.link(nb, page, config)
        path.write_text(json.dumps(nb), encoding="utf-8")
    names.rename(stage)
    subprocess.run([Path(sys.executable).with_name("smalldocs"), "render", stage], check=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(stage / site.name, site)
    shutil.rmtree(stage)
    names.settle(site)
    offline.complete(site, config.config_path / ".cache")
    return site


if __name__ == "__main__":
    site = build()
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"the site is in {site} ({size / 1e6:.1f} MB): open {site / 'index.html'}")
