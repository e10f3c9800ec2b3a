"""The command `datadiet` in a real process: results on stdout, mistakes as one sentence, never a traceback."""
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT

QUICK = ["--model", "mlp", "--width", "8", "--recipe", "digits"]


def datadiet(*args, cwd):
    "Run the command; the package is the one beside the tests."
    code = "import sys; from datadiet.cli import main; sys.argv[0] = 'datadiet'; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=cwd, text=True, capture_output=True, env=env)


def test_from_a_data_set_to_a_curve(tmp_path):
    done = datadiet("score", "digits", *QUICK, "--epoch", "1", "--runs", "2", "--out", "scores", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("scores/digits_el2n.npz: Scores(el2n: 2 runs"), done.stderr
    done = datadiet("prune", "scores/digits_el2n.npz", "--keep", "0.5", cwd=tmp_path)
    assert done.stdout == "kept.npy: 718 of 1,437 examples kept (highest, el2n)\n"
    assert len(np.load(tmp_path / "kept.npy")) == 718
    for name in ("kept.csv", "kept.txt"):
        assert datadiet("prune", "scores/digits_el2n.npz", "--keep", "0.5", "-o", name, cwd=tmp_path).stdout.startswith(f"{name}: 718 of 1,437")
    assert (tmp_path / "kept.csv").read_text().splitlines() == ["example", *(tmp_path / "kept.txt").read_text().splitlines()]
    assert [int(line) for line in (tmp_path / "kept.txt").read_text().splitlines()] == np.load(tmp_path / "kept.npy").tolist()
    done = datadiet("curve", "digits", "scores/digits_el2n.npz", *QUICK, "--keep", "0.5", "--seeds", "1", "--figure", "curve.png", cwd=tmp_path)
    assert done.returncode == 0 and "| el2n" in done.stdout, done.stderr
    done = datadiet("figure", "curve.csv", "-o", "again.png", cwd=tmp_path)
    assert done.stdout == "again.png: 3 rows of curve.csv\n", done.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "curve.png").read_bytes()
    done = datadiet("report", "scores/digits_el2n.npz", "--data", "digits", "-o", "report.html", cwd=tmp_path)
    assert done.stdout.startswith("report.html: a report on 1,437 examples of digits"), done.stderr
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")
    assert {p.name for p in tmp_path.iterdir()} == {"scores", "kept.npy", "kept.csv", "kept.txt", "curve.csv", "curve.png", "curve.svg", "again.png",
                                                    "again.svg", "report.html"}


@pytest.mark.parametrize("args, says", [
    (["score", "mnist-2d"], "name='mnist-2d': must be one of digits"),
    (["score", "none.npz"], "none.npz does not exist"),
    (["score", "torn.npz"], "torn.npz is not a readable .npz"),
    (["score", "digits", "--recipe", "fastest"], "recipe='fastest': must be a Recipe or one of"),
    (["score", "digits", *QUICK, "--out", "torn.npz/folder"], "the folder torn.npz/folder cannot be made"),
    (["curve", "digits", "torn.npz", *QUICK, "--out", "torn.npz/curve.csv"], "the folder torn.npz cannot be made"),
    (["prune", "torn.npz", "--keep", "0.5"], "torn.npz is not a readable file of scores"),
    (["report", "torn.npz", "--data", "digits"], "torn.npz is not a readable file of scores"),
    (["figure", "torn.npz", "-o", "curve.png"], "torn.npz: table has the columns PK half a file, of which no figure is known"),
    (["figure", "none.csv"], "none.csv does not exist"),
    (["train", "digits", "--kept", "torn.npz", *QUICK], "torn.npz ends in '.npz': must end in .npy or .csv or .txt"),
])
def test_a_mistake_is_one_sentence(args, says, tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK half a file")
    done = datadiet(*args, cwd=tmp_path)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and says in message and message.startswith("datadiet: "), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["torn.npz"]


def test_interrupted_it_says_so_and_goes_on(tmp_path):
    command = ["score", "digits", "--model", "small_cnn", "--recipe", "digits", "--epoch", "8", "--runs", "3", "--store", "runs"]
    code = "import sys; from datadiet.cli import main; sys.argv[0] = 'datadiet'; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, "-c", code, *command], cwd=tmp_path, text=True, stderr=subprocess.PIPE, env=env, start_new_session=True)
    while not list(tmp_path.glob("runs/unfinished/*.lock")): assert first.poll() is None
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 130 and "datadiet: interrupted; what is finished in the --store is kept" in said, said
    done = datadiet(*command, cwd=tmp_path)
    assert done.returncode == 0 and "3 runs" in done.stdout, done.stderr


def test_a_wrong_option_is_exit_code_2(tmp_path):
    done = datadiet("prune", "x.npz", "--keep", "half", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
