"""The parts of tools/docs, each on a small case."""
import sys
from pathlib import Path

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools/docs"))
import api  # noqa: E402
import figures  # noqa: E402
import names  # noqa: E402
import offline  # noqa: E402

SHOWN = '''### f

```python
def f(
    x:torch.Tensor | None, *rest:int, size:float=0.5, mode:collections.abc.Sequence='a.b', **more
)->tuple[datadiet.scores.Scores, numpy.ndarray]:
```

*Does it.*

Args:
    x: What it is
        on two lines, 1 | 2.
    size: The size.

Returns:
    Two things.

Raises:
    ValueError: For x.
    KeyError: For y.

Theorem 1.
'''


def test_signature_and_arguments():
    text = api.tabulated(SHOWN)
    assert "    x: Tensor | None,\n    *rest: int,\n    size: float = 0.5,\n    mode: Sequence = 'a.b',\n    **more,\n) -> tuple[Scores, ndarray]\n" in text
    assert "| `x` | `Tensor \\| None` | What it is on two lines, 1 \\| 2. |\n| `size` | `float = 0.5` | The size. |" in text
    assert "**Returns** Two things." in text and "**Raises** `ValueError`: For x. `KeyError`: For y." in text and text.endswith("Theorem 1.\n")


def test_odd_signatures():
    assert api.tabulated("no code") == "no code"
    unknown = "```python\ndef Node.run(\n    x\n):\n```\n\nArgs:\n    x: It.\n"
    assert api.tabulated(unknown) == unknown
    assert api.tabulated("```python\ndef Box(\n    meta:dict=<factory>, *, n:int=1\n)->None:\n```") == "```python\nclass Box(meta: dict = ..., *, n: int = 1)\n```"
    assert api.tabulated("```python\ndef now(\n    \n):\n```") == "```python\ndef now()\n```"


def test_links_follow_the_names_of_pages():
    source = "[a](../api/00_core.ipynb#b) `[c](d.ipynb)` [e](https://x.org/01_f.ipynb) [g](https://here.org/site/api/h.html)"
    nb = {"cells": [{"cell_type": "markdown", "source": source}]}
    names.relink(nb, Path("guides/10_x.ipynb"), "https://here.org/site")
    assert nb["cells"][0]["source"] == source.replace("00_core", "core").replace("https://here.org/site/", "../")


def test_figures_get_a_text_and_their_tables(tmp_path):
    (tmp_path / "results").mkdir()
    for name in ("digits_a.csv", "cpu_a.csv", "a_b.csv"): (tmp_path / "results" / name).touch()
    drawn = {"cell_type": "code", "outputs": [{"data": {"image/png": ""}}]}
    nb = {"cells": [drawn | {"source": "#| tables: a\nplot()"}, {"cell_type": "markdown", "source": "*A [line](x.html)\nand `code`.*\n\nMore."},
                    drawn | {"source": '#| fig-alt: "own"\nplot()'}]}
    figures.describe(nb, Path("experiments/10_x.ipynb"), tmp_path)
    first, tables, _, last = nb["cells"]
    assert first["source"].startswith('#| fig-alt: "A line and code."\n#| tables: a\n') and last["source"].count("fig-alt") == 1
    assert "[cpu_a.csv](../results/cpu_a.csv), [digits_a.csv](../results/digits_a.csv)\n" in tables["source"]


def test_without_katex_no_page_asks_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(offline, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("PATH", "")
    head = ('<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/katex@0.16.11/dist/katex.min.css">'
            '<script src="https://cdn.jsdelivr.net/npm/katex@0.16.11/dist/katex.min.js" defer></script><b>x</b>')
    (tmp_path / "page.html").write_text(head)
    offline.equations(tmp_path, tmp_path / "cache")
    assert (tmp_path / "page.html").read_text() == "<b>x</b>" and "in TeX" in capsys.readouterr().out
