"""At the top of each page: where its notebook is, and how to run it."""


def link(nb, page, config):
    "Put the links below the title of the notebook at `page`, a path in the folder of notebooks."
    path = f"{config.nbs_path.relative_to(config.config_path).as_posix()}/{page.as_posix()}"
    blob = f"{config.user}/{config.repo}/blob/{config.branch}/{path}"
    links = [f"[View source]({config.git_url}/blob/{config.branch}/{path})",
             f'[Open in JupyterLab](http://localhost:8888/lab/tree/{path} "on this machine, while make lab is running")',
             f"[Open in Colab](https://colab.research.google.com/github/{blob} "
             f'"there, first run %pip install git+{config.git_url}")']
    cell = {"cell_type": "markdown", "metadata": {}, "source": f"::: {{.page-links}}\n{' · '.join(links)}\n:::"}
    nb["cells"].insert(1 if nb["cells"][0]["cell_type"] == "raw" else 0, cell)
