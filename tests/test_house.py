"""The house around the notebooks: what is exported, imported, built and documented fits together."""
import ast
import re
import sys
import zipfile

import yaml

from conftest import NOTEBOOKS, ROOT, run, tool

# a module imports only modules that stand before it
ORDER = ["core", "data", "inputs", "models", "train", "ensemble", "layer_norms", "gradnorm", "scores", "dynamics", "prune", "export", "noise", "ntk", "connectivity",
         "runs", "diet", "memorization", "compare", "lightning", "plot", "report", "cli"]
FORBIDDEN = {"scores": {"train"}, **dict.fromkeys(["models", "layer_norms", "ntk"], set(ORDER) - {"core"}),
             "gradnorm": set(ORDER) - {"core", "layer_norms"}}
MODULES = {path.stem: path for path in sorted(ROOT.glob("datadiet/*.py")) if not path.stem.startswith("_")}


def contents(project):
    "What the notebooks and the modules hold."
    files = [*project.glob("nbs/**/*.ipynb"), *project.glob("datadiet/*.py")]
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in files}


def test_export_and_clean_change_nothing(project):
    before = contents(project)
    for path in project.glob("datadiet/*.py"):
        if path.name != "__init__.py": path.unlink()
    run(tool("nbdev_export"), cwd=project)
    run(tool("nbdev_clean"), cwd=project)
    after = contents(project)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, "run nbdev_export and nbdev_clean"


def imports(path):
    "The dotted names that a module imports."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, ["datadiet" if node.level else "", node.module]))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def test_imports_point_downward():
    assert MODULES.keys() <= set(ORDER), "a new module needs its place in ORDER"
    wrong = []
    for module, path in MODULES.items():
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("datadiet.")} & set(ORDER)
        allowed = set(ORDER[:ORDER.index(module)]) - FORBIDDEN.get(module, set())
        wrong += [f"{module} imports {name}" for name in sorted(ours - allowed)]
    assert not wrong


def test_plot_does_not_import_torch():
    assert not [name for name in imports(MODULES["plot"]) if name.split(".")[0] in ("torch", "torchvision")]


def test_no_undefined_or_unused_names():
    run(tool("ruff"), "check", "--no-cache", "--select", "F", "datadiet", "tools", "tests", cwd=ROOT)


def test_wheel_works_outside_the_repository(project, tmp_path_factory):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=project)
    [wheel] = project.glob("dist/*.whl")
    version = wheel.name.split("-")[1]
    names = zipfile.ZipFile(wheel).namelist()
    assert "datadiet/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"datadiet", f"datadiet-{version}.dist-info"}
    target, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    run(*pip, "install", "--no-deps", "--target", target, wheel, cwd=elsewhere)
    code = "import importlib, sys; [print(importlib.import_module(name).__file__) for name in sys.argv[1:]]"
    found = run(sys.executable, "-c", code, *(f"datadiet.{name}" for name in MODULES), cwd=elsewhere, PYTHONPATH=target)
    assert all(line.startswith(str(target)) for line in found.splitlines())
    assert version in run(target / "bin/datadiet", "--version", cwd=elsewhere, PYTHONPATH=target)


def test_readme_is_made_from_the_index(project):
    run(sys.executable, "tools/readme.py", cwd=project)
    assert (project / "README.md").read_text() == (ROOT / "README.md").read_text(), "run tools/readme.py"


def test_readme_example_runs(tmp_path):
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert examples
    (tmp_path / "example.py").write_text("\n".join(examples))
    run(sys.executable, "example.py", cwd=tmp_path, PYTHONPATH=ROOT)


def test_readme_links_lead_somewhere():
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s#]+)", prose)
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_sidebar_lists_every_notebook():
    def pages(entry):
        return [page for item in entry["contents"] for page in ([item] if isinstance(item, str) else pages(item))]
    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text())["website"]["sidebar"]
    assert sorted(pages(sidebar)) == sorted(name.removeprefix("nbs/") for name in NOTEBOOKS)
