"""Files are whole or not there: a full disk, a killed writer, two writers at once."""
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from conftest import ROOT

WRITERS = {  # file name → how it is written; `big` makes some MB of noise, which no compression shrinks
    "scores.npz": "Scores.of(big_data(), big(), 'el2n').save(path)",
    "table.csv": "write_table(pd.DataFrame(big()), path)",
    "figure.png": "save_figure(figure(), path)",
}
SETUP = """
import os, resource, sys
import numpy as np, pandas as pd, matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt, torch
from datadiet.core import atomic_write, write_table
from datadiet.data import from_arrays
from datadiet.plot import save_figure
from datadiet.scores import Scores
big = lambda: np.random.default_rng(0).random((50, 2000))
big_data = lambda: from_arrays(np.zeros((2000, 2, 2), np.uint8), np.arange(2000) % 2)
def figure():
    fig, ax = plt.subplots()
    ax.imshow(big())
    return fig
path = sys.argv[1]
"""


def python(code, *args):
    "Run `code` after SETUP in a process of its own."
    code = SETUP + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, text=True, capture_output=True)


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_keeps_the_old_file_and_says_which(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"the old one")
    done = python(f"""
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))     # the disk is full after 10 kB
        try: {WRITERS[name]}
        except OSError as error: print(error)
        else: print("no error")
    """, path)
    assert f"{name} could not be written" in done.stdout and "free some space" in done.stdout, done.stdout + done.stderr
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_without_a_limit_the_same_call_works(name, tmp_path):
    path = tmp_path / name
    done = python(WRITERS[name], path)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 10_000


def test_killed_in_the_middle_of_writing(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("the old one")
    done = python("""
        with atomic_write(path) as part:
            part.write_text("ha")
            os.kill(os.getpid(), 9)
    """, path)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "the old one"


def test_two_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "result.npy"
    code = SETUP + textwrap.dedent("""
        for _ in range(200):
            with atomic_write(path) as part, open(part, "wb") as file: np.save(file, np.full(10_000, int(sys.argv[2])))
    """)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)], cwd=ROOT) for i in (1, 2)]
    while any(writer.poll() is None for writer in writers):
        if path.exists(): assert len(np.unique(np.load(path))) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["result.npy"]
