"""Make README.md from the notebook that settings.ini names as readme_nb (nbs/index.ipynb).

The title and its `> description` come first. Cells marked `hide` are left out, code loses its directives,
outputs are kept as Markdown or as text; figures belong into files that the notebook's Markdown shows.
Links and images that are relative to nbs/ become relative to the repository's root.
"""
import json
import posixpath
import re

from nbdev.config import get_config

LINK = re.compile(r'(\]\(|src="|href=")([^)\s"]+)')
DIRECTIVE = re.compile(r"^#\s*\|\s*(.*)\n?", re.MULTILINE)


def relink(markdown, folder):
    "Turn links relative to `folder` into links relative to the root; code is left as it is."
    def at_root(match):
        start, target = match.groups()
        if re.match(r"[a-z]+:|[#/]", target): return match[0]
        return start + posixpath.normpath(posixpath.join(folder, target))
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else LINK.sub(at_root, part) for i, part in enumerate(parts))


def shown(output, folder):
    "One output of a cell as Markdown."
    data = output.get("data", {})
    if "text/markdown" in data: return relink("".join(data["text/markdown"]).strip(), folder)
    if "image/png" in data: return ""
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


def blocks(cell, folder):
    "The parts of the README that one cell gives."
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown": return [relink(source, folder)]
    if cell["cell_type"] != "code": return []
    directives = DIRECTIVE.findall(source)
    if "hide" in directives: return []
    code = DIRECTIVE.sub("", source).strip()
    code = [f"```python\n{code}\n```"] if code and "echo: false" not in directives else []
    return code + [shown(output, folder) for output in cell["outputs"]]


def make_readme():
    "The text of README.md."
    config = get_config()
    path = config.nbs_path / config.readme_nb
    folder = path.parent.relative_to(config.config_path).as_posix()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(block for cell in cells for block in blocks(cell, folder) if block)
    # nbdev allows the description directly below the title; Markdown on GitHub reads better with a line between
    return re.sub(r"\A(# .*)\n+(> )", r"\1\n\n\2", text) + "\n"


if __name__ == "__main__":
    (get_config().config_path / "README.md").write_text(make_readme(), encoding="utf-8")
