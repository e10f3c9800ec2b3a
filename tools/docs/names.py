"""What a page is called, and links that lead there.

As with Quarto, a page loses the number of its notebook: api/00_core.ipynb becomes api/core.html. Links to notebooks
follow; links to the published site, which nbdev puts on the names of functions, become relative. nbdev also links
methods that have no heading of their own: these links lead to their class.
"""
import functools
import posixpath
import re

NUMBERED = re.compile(r"\d+[a-zA-Z0-9]*_(?=[^/]+\.ipynb)")
NOTEBOOK = re.compile(r"\]\(([^()\s:]+\.ipynb)")


def page_name(name):
    "The name under which a notebook is published."
    return NUMBERED.sub("", name.lower())


def rename(stage):
    "Give the staged notebooks, and the entries for them in the sidebar, the names of their pages."
    for path in [*stage.rglob("*.ipynb")]: path.rename(path.with_name(page_name(path.name)))
    for path in stage.rglob("*.yml"): path.write_text(NUMBERED.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")


def relink(nb, page, site):
    "Make the links of the notebook at `page` (relative to the site's root) lead to pages, without the address of `site`."
    root = "../" * len(page.parent.parts)

    def led(text): return NOTEBOOK.sub(lambda match: f"]({page_name(match[1])}", text.replace(f"{site}/", root))

    for cell in nb["cells"]:
        if cell["cell_type"] == "raw": cell["source"] = re.sub(r"output-file: .*\n", "", cell["source"])
        if cell["cell_type"] == "markdown": cell["source"] = led(cell["source"])
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = led("".join(data["text/markdown"]))


def settle(site):
    "Shorten the anchors of links between built pages, class.method to class to none, until they are there."
    @functools.cache
    def anchors(page): return set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))) if page.is_file() else None

    def settled(page, match):
        target, anchor = site / posixpath.normpath(posixpath.join(page.relative_to(site).parent.as_posix(), match[1])), match[2]
        if anchors(target) is None or anchor in anchors(target): return match[0]
        above = anchor.rpartition(".")[0]
        return f'href="{match[1]}#{above}"' if above in anchors(target) else f'href="{match[1]}"'

    for page in site.rglob("*.html"):
        text = re.sub(r'href="([^":#?]+\.html)#([^"]+)"', functools.partial(settled, page), page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
