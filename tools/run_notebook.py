"""Run notebooks in place, from their own folders, and save what they show.

usage: run_notebook.py [--flags "slow gpu"] NOTEBOOK…

What is skipped is what nbdev_test skips: cells marked `#| eval: false`, and those that carry one of the
tst_flags of settings.ini, unless --flags names it. Skipped cells keep the outputs they had. Everything else
shows in the terminal while it happens; warnings and progress bars (stderr) are not saved, and pictures are saved in
256 colours, a third of the size. A notebook is saved, clean, only when all of its cells have run; the first failing
cell ends the command with exit code 1.
"""
import argparse
import base64
import io
import json
import os
import re
import sys
from pathlib import Path

import nbformat
from execnb.nbio import write_nb
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor
from PIL import Image


def skipped(path, flags):
    "The positions of the cells that stay as they are."
    cells = NBProcessor(path, process=False, rm_directives=False).nb.cells
    directives = [getattr(cell, "directives_", None) or {} for cell in cells]
    never = lambda d: d.get("eval:", [""])[0].lower() == "false"
    return {i for i, d in enumerate(directives) if never(d) or flags & d.keys()}


def echo(message):
    "Show one message of the kernel in the terminal."
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        stream = getattr(sys, content["name"])
        print(content["text"], end="", file=stream, flush=True)
    elif kind in ("execute_result", "display_data") and "image/png" not in content["data"]:
        data = content["data"]
        print(data.get("text/markdown") or data.get("text/plain", ""), flush=True)


class Client(NotebookClient):
    "An nbclient that leaves some cells alone and shows what the others print."

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell_index in self.skip: return cell
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)

    def process_message(self, msg, cell, cell_index):
        echo(msg)
        return super().process_message(msg, cell, cell_index)


def smaller(png):
    "A picture (PNG in base64) in its 256 most important colours, where that makes it smaller and nothing is transparent."
    whole, part = base64.b64decode(png), io.BytesIO()
    picture = Image.open(io.BytesIO(whole)).convert("RGBA")
    if picture.getextrema()[3] != (255, 255): return png
    picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(part, "PNG", optimize=True)
    return base64.b64encode(min(whole, part.getvalue(), key=len)).decode()


def keep(output):
    "An output of a cell as it is saved; None for what is not."
    if output.get("name") == "stderr": return None
    if "image/png" in output.get("data", {}): output["data"]["image/png"] = smaller(output["data"]["image/png"])
    return output


def run(path, flags):
    "Run the notebook at `path` and save it."
    nb = nbformat.read(path, as_version=4)
    client = Client(nb, kernel_name="python3", timeout=None, extra_arguments=["--log-level=ERROR"],
                    resources={"metadata": {"path": str(path.parent)}})
    client.skip = skipped(path, flags)
    client.execute()
    for cell in nb.cells:
        if "outputs" in cell: cell.outputs = [kept for output in cell.outputs if (kept := keep(output))]
    nb = json.loads(nbformat.writes(nb))
    clean_nb(nb)
    part = path.with_suffix(".tmp")
    write_nb(nb, part)
    os.replace(part, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flags", default="", help="test flags whose cells run all the same")
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    args = parser.parse_args()
    config = get_config()
    # as in nbdev_test, the package is the one beside the notebooks, whatever is installed
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(config.config_path), os.environ.get("PYTHONPATH")]))
    for path in args.notebooks:
        print(f"running {path}", flush=True)
        try: run(path.resolve(), set(config.tst_flags.split()) - set(args.flags.split()))
        except CellExecutionError as error:
            colour = r"\x1b\[[0-9;]*m"
            text = str(error) if sys.stderr.isatty() else re.sub(colour, "", str(error))
            sys.exit(f"{path} failed and was left as it was\n{text}")
