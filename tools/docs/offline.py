"""Equations, fonts and search without a network, whether the pages are served or opened as files.

Equations need KaTeX. It is taken from Debian's package libjs-katex where that is installed, else from npm (and kept
in .cache/). Without either the site is built all the same: equations then stand there as they are typed, in TeX.
"""
import json
import re
import shutil
import subprocess
from pathlib import Path

KATEX = "katex@0.16.11"  # the version that smalldocs 0.5.4 links to
DEBIAN = Path("/usr/share/javascript/katex")
ADDRESS = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@[^/]*/dist/")
FETCH = 'const r = await fetch(offset + "search.json");\n      index = await r.json();'
LOAD = """index = await new Promise((done, failed) => {
        const script = document.createElement("script");
        script.onload = () => done(window.searchIndex);
        script.onerror = failed;
        script.src = offset + "search.js";
        document.head.append(script);
      });"""


def npm(cache):
    "KaTeX from npm, kept in `cache`; None where npm or the network is missing."
    dist = cache / "node_modules/katex/dist"
    if not dist.exists() and shutil.which("npm"):
        subprocess.run(["npm", "install", "--silent", "--no-save", "--fetch-retries=0", "--prefix", cache, KATEX])
    return dist if dist.exists() else None


def equations(site, cache):
    "Put KaTeX beside the pages and let them use it; without one, let them not ask for it."
    dist = DEBIAN if DEBIAN.exists() else npm(cache)
    if dist:
        target = site / "site_libs/katex"
        shutil.copytree(dist / "fonts", target / "fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
        for name in ("katex.min.css", "katex.min.js"): shutil.copy(dist / name, target / name)
        render = dist / "contrib/auto-render.min.js"
        (target / "contrib").mkdir()
        shutil.copy(render if render.exists() else dist / "contrib/auto-render.js", target / "contrib/auto-render.min.js")
    else: print("no KaTeX (neither Debian's libjs-katex nor npm with a network): equations will be shown in TeX")
    for path in site.rglob("*.html"):
        text, root = path.read_text(encoding="utf-8"), "../" * len(path.relative_to(site).parent.parts)
        if dist: text = ADDRESS.sub(f"{root}site_libs/katex/", text)
        else: text = re.sub(rf'<(?:link|script) [^>]*{ADDRESS.pattern}[^>]*>(?:</script>)?', "", text)
        path.write_text(text, encoding="utf-8")


def fonts(site):
    "Themes ask Google for their fonts; without that, readers get those of their own system."
    for path in site.glob("site_libs/**/*.css"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"@import url\(https?://[^)]*\);?", "", text), encoding="utf-8")


def search(site):
    "Load the index of the search as a script: a page that was opened as a file may not fetch anything."
    index = json.loads((site / "search.json").read_text(encoding="utf-8"))
    (site / "search.js").write_text(f"window.searchIndex = {json.dumps(index, ensure_ascii=False)};\n", encoding="utf-8")
    (site / "search.json").unlink()
    script = site / "site_libs/smalldocs.js"
    text = script.read_text(encoding="utf-8")
    if FETCH not in text: raise RuntimeError("smalldocs.js loads its index in another way: see tools/docs/offline.py")
    script.write_text(text.replace(FETCH, LOAD), encoding="utf-8")


def complete(site, cache):
    "Make the site independent of everything outside it."
    equations(site, cache)
    fonts(site)
    search(site)
