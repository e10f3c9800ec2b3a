"""Processes to kill. A nursery has imported the package once and forks, so that each process is ready at once.

Run as a script it takes commands, one JSON object a line: {"start": code, "log": file} answers with the process's id,
a leader of its own group, and {"wait": id} with how it ended: its exit code, or minus the signal that ended it.
"""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ["scores.npz", "metrics.csv", "snapshots.safetensors", "spec.json"]

# what every process begins with: four runs on the digits, of 1 to 2 seconds each; `small`: of a tenth
SETUP = """
import dataclasses, json, os, signal, sys, time, warnings
from pathlib import Path
import numpy as np
from torch import nn
from datadiet import runs
from datadiet.data import load
from datadiet.runs import RunSpec, Store, data_key, run_all
from datadiet.train import Recipe

data = train, test = load("digits"), load("digits", split="test")
def spec(steps, **change):
    "A run of `steps` steps with everything that a run can have."
    recipe = Recipe(steps=steps, batch_size=64, lr=.05, milestones=(steps // 2,), pad=1, flip=True)
    at = [steps // 4, steps // 2, steps]
    scores = [("el2n", at[0]), ("forgetting", at[1]), ("el2n", steps), ("forgetting", steps)]
    given = dict(model="mlp", width=16, seed=0, scores=scores, snapshots=at, kept=np.arange(1000), test=data_key(test))
    return RunSpec(data_key(train), recipe=recipe, **given | change)
plan = [spec(1500), spec(1500, seed=1), spec(1500, seed=2, kept=None), spec(200, model="small_cnn", width=4)]
small = [spec(60), spec(60, seed=1)]
store = Store(STORE)
runs._Checkpoints.share = 1.0            # not sparing: in runs of a second, too, there shall be some
def carry_out(plan, least=10.0, builders={}):
    "What the workers of `run_all` do, in this process, one run after the other."
    for images in data: runs._put_data(store, images)
    for one in plan: assert runs._attempt(one, store.path, builders.get(one.model), "cpu", least) == "done"
quick = dict(devices=["cpu"], progress=False, checkpoint_every=.2)
"""


class Nursery:
    "Starts processes that need no time to import anything."
    def __init__(self, folder):
        self.log, self.running = folder / "log", set()
        env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(command, cwd=folder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, code, store):
        "Run `code`, after SETUP, with the store at `store`; the process's id."
        self.log.write_text("")
        pid = self.ask(start=f"STORE = {str(store)!r}\n{SETUP}\n{textwrap.dedent(code)}", log=str(self.log))
        self.running.add(pid)
        return pid

    def wait(self, pid):
        "How the process ended."
        self.running.remove(pid)
        return self.ask(wait=pid)

    def run(self, code, store):
        "Run `code` to its end; what it printed."
        status = self.wait(self.start(code, store))
        assert status == 0, f"exit code {status}\n{self.log.read_text()[-5000:]}"
        return self.log.read_text()

    def close(self):
        for pid in self.running: os.killpg(pid, signal.SIGKILL)  # of tests that failed
        self.process.stdin.close()
        self.process.wait()


def until(condition, seconds=120):
    "Wait until `condition()`."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.01)


def alive(pid):
    "Whether a process is there, and not only because nobody has asked how it ended."
    try: return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError: return False


def assert_equal(store, undisturbed, n=None):
    "The finished runs of `store` are byte for byte those of `undisturbed`, and nothing else is among them."
    hashes = sorted(path.name for path in (store / "runs").iterdir())
    assert len(hashes) == (n or len(list((undisturbed / "runs").iterdir())))
    for name in hashes:
        ours, theirs = store / "runs" / name, undisturbed / "runs" / name
        assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
        for file in RESULTS: assert (ours / file).read_bytes() == (theirs / file).read_bytes(), (name, file)


def child(code, log):
    "Run `code` in a process group of its own, with its output in `log`."
    os.setsid()
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in (null, 0), (out, 1), (out, 2): os.dup2(source, target)
    try: exec(compile(code, "<test>", "exec"), {"__name__": "__test__"})
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401, what an optimizer would import

    import datadiet.runs  # noqa: F401
    from datadiet.core import provenance
    from datadiet.data import load

    provenance(), load("digits")  # they, too, take longer the first time
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command: answer = os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])
        else: answer = os.fork() or child(command["start"], command["log"])
        print(answer, flush=True)
