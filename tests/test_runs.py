"""Runs that survive: killed at any moment, on full disks, two at once, with damaged files; always the same bytes."""
import itertools
import os
import random
import re
import shutil
import signal
import textwrap
import time
from pathlib import Path

import pytest

from nursery import alive, assert_equal, until


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    "The store of all runs, `plan` and `small`, made without any disturbance."
    path = tmp_path_factory.mktemp("undisturbed") / "store"
    nursery.run("carry_out(plan + small)", path)
    return path


@pytest.fixture
def half(undisturbed, tmp_path):
    "A copy of that store, for a test that damages it."
    return Path(shutil.copytree(undisturbed, tmp_path / "store"))


def kill(nursery, pid, after):
    "`kill -9` to a whole process group."
    time.sleep(after)
    os.killpg(pid, signal.SIGKILL)
    return nursery.wait(pid)


# ---------------------------------------------------------------- killed

WITNESS = """
resumed = runs.Training.load_state_dict
def witness(self, state):
    print(f"resumed after step {state['step']}", flush=True)
    resumed(self, state)
runs.Training.load_state_dict = witness
"""


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments(kills, nursery, undisturbed, tmp_path):
    moments, store, code = random.Random(kills), tmp_path / "store", WITNESS + "carry_out(plan, least=.05)"
    pid = nursery.start(code, store)
    until(lambda: list(store.glob("unfinished/*/checkpoint.pt")))
    middle, output = 0, ""
    for _ in range(kills):
        assert kill(nursery, pid, moments.uniform(.05, 4 / kills)) == -signal.SIGKILL         # the plan takes longer than all of them
        middle += bool(list(store.glob("unfinished/*/checkpoint.pt")))
        output += nursery.log.read_text()
        pid = nursery.start(code, store)
    assert nursery.wait(pid) == 0, nursery.log.read_text()
    output += nursery.log.read_text()
    assert_equal(store, undisturbed, n=4)
    steps = [int(step) for step in re.findall(r"resumed after step (\d+)", output)]
    assert middle and steps and all(0 < step <= 1500 for step in steps), (middle, steps)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_killed_before_a_change_of_the_disk(every, nursery, undisturbed, tmp_path):
    code = """
    runs._Checkpoints.__call__ = lambda self, state: runs._save_checkpoint(self.path, state())      # after every slice
    changes = 0
    def count(event, args):
        "Before the Nth time that a file is opened for writing, renamed or deleted, die."
        global changes
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"): return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR): return
        if not str(args[0]).startswith(STORE): return
        if changes == LAST: os.kill(os.getpid(), signal.SIGKILL)
        changes += 1
    sys.addaudithook(count)
    carry_out(small[:1])
    """
    killed = 0
    for last in itertools.count(0, every):
        store = tmp_path / str(last)
        status = nursery.wait(nursery.start(f"LAST = {last}\n{textwrap.dedent(code)}", store))
        if status == 0: break
        assert status == -signal.SIGKILL, nursery.log.read_text()
        assert len(list((store / "runs").iterdir())) in (0, 1)
        killed += 1
        nursery.run("carry_out(small[:1])", store)
        assert_equal(store, undisturbed, n=1)
    assert killed > 40 / every, killed


@pytest.mark.long
def test_twenty_kills_of_a_pool(nursery, tmp_path):
    moments, store = random.Random(0), tmp_path / "store"
    several = """
    def build():
        runs._Checkpoints.__call__ = lambda self, state: runs._save_checkpoint(self.path, state())  # after every slice
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    builders, several = dict(mine=build), [spec(3000, model="mine", seed=seed) for seed in range(4)]
    """
    nursery.run(several + "carry_out(several, builders=builders)", tmp_path / "undisturbed")
    code = several + "run_all(several, store, data, builders=builders, workers=2, **quick)"
    for _ in range(20):
        pid, start = nursery.start(code, store), time.time()
        until(lambda: any(path.stat().st_mtime > start for path in store.glob("unfinished/*/checkpoint.pt")))
        kill(nursery, pid, moments.uniform(0, .5))
    assert list(store.glob("unfinished/*/checkpoint.pt"))               # the last one, too, was killed in the middle
    assert nursery.wait(nursery.start(code, store)) == 0, nursery.log.read_text()
    assert_equal(store, tmp_path / "undisturbed")


def test_workers_do_not_outlive_a_killed_parent(nursery, undisturbed, tmp_path):
    code = """
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
        def forward(self, x):
            time.sleep(.02)
            return self.layer(x.flatten(1))
    def build():
        Path(STORE, "worker").write_text(str(os.getpid()))
        return Slow()
    run_all([spec(1000, model="slow")], store, data, builders=dict(slow=build), workers=1, **quick)
    """
    pid = nursery.start(code, tmp_path / "store")
    until(lambda: list(tmp_path.glob("store/unfinished/*/checkpoint.pt")))
    worker = int((tmp_path / "store/worker").read_text())
    os.kill(pid, signal.SIGKILL)                                # the parent only
    nursery.wait(pid)
    until(lambda: not alive(worker), 10)


def test_control_c_ends_promptly_and_without_harm(nursery, undisturbed, tmp_path):
    store, code = tmp_path / "store", "run_all(plan[:2], store, data, workers=2, **quick)"
    pid = nursery.start(code, store)
    until(lambda: list(store.glob("unfinished/*/checkpoint.pt")))
    start = time.monotonic()
    os.killpg(pid, signal.SIGINT)
    assert nursery.wait(pid) == 1
    assert time.monotonic() - start < 15
    assert nursery.log.read_text().rstrip().endswith("KeyboardInterrupt")
    assert list(store.glob("unfinished/*/checkpoint.pt")) and len(list((store / "runs").iterdir())) < 2
    output = nursery.run(WITNESS + "carry_out(plan[:2])", store)
    assert "resumed after step" in output
    assert_equal(store, undisturbed, n=2)


# ---------------------------------------------------------------- damaged

def flip(path):
    "Change one bit in the middle of a file."
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path): path.write_bytes(path.read_bytes()[:-100])


def empty(path): path.write_bytes(b"")


@pytest.mark.parametrize("damage, file, says", [(flip, "scores.npz", "is damaged"), (empty, "manifest.json", "is empty or damaged"),
                                                (Path.unlink, "metrics.csv", "is missing")])
def test_a_damaged_run_is_named_and_computed_again(damage, file, says, nursery, undisturbed, half):
    hurt = sorted((half / "runs").iterdir())[0]
    damage(hurt / file)
    output = nursery.run("""
    for one in plan + small:
        try: store.read(one)
        except ValueError as error: print(error)
    carry_out(plan + small)
    """, half)
    assert f"run {hurt.name} in {half}: {file} {says}; run the plan again to recompute it" in output
    assert f"run {hurt.name} in {half}: {file} {says}; it is set aside, to be run again" in output
    assert len(list((half / "damaged").iterdir())) == 1
    assert_equal(half, undisturbed)


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(damage, nursery, undisturbed, tmp_path):
    store = tmp_path / "store"
    pid = nursery.start("carry_out(plan[:1], least=.05)", store)
    until(lambda: list(store.glob("unfinished/*/checkpoint.pt")))
    kill(nursery, pid, 0)
    [checkpoint] = store.glob("unfinished/*/checkpoint.pt")
    damage(checkpoint)
    output = nursery.run(WITNESS + "carry_out(plan[:1])", store)
    assert f"{checkpoint} is damaged: the run starts again from its beginning" in output
    assert "resumed" not in output
    assert_equal(store, undisturbed, n=1)


def test_a_half_written_folder_is_not_read(nursery, undisturbed, half):
    run = sorted((half / "runs").iterdir())[0]
    work = half / "unfinished" / run.name
    work.mkdir(exist_ok=True)
    shutil.move(run, work / "finished")                         # as before the manifest was written
    for name in ("manifest.json", "provenance.json"): (work / "finished" / name).unlink()
    (work / "finished" / "metrics.csv").write_text("step,lo")
    output = nursery.run("""
    for one in plan + small:
        try: store.read(one)
        except KeyError as error: print(error)
    carry_out(plan + small)
    """, half)
    assert f"run {run.name} is not in {half}" in output
    assert_equal(half, undisturbed)
    assert not work.exists()


def test_a_store_that_cannot_be_made_is_said_at_once(nursery, tmp_path):
    (tmp_path / "file").write_text("")
    pid = nursery.start("", tmp_path / "file" / "store")
    assert nursery.wait(pid) == 1
    end = nursery.log.read_text().splitlines()[-1]
    assert f"the store {tmp_path}/file/store cannot be made" in end and "name another folder" in end


# ---------------------------------------------------------------- full disks, failing runs, dying workers, two at once

def test_a_full_disk_ends_the_runs_that_need_more(nursery, undisturbed, tmp_path):
    store = tmp_path / "store"
    output = nursery.run("""
    import resource
    for images in data: runs._put_data(store, images)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))     # a file may have 10 kB; the workers inherit that
    try: run_all(small, store, workers=1, **quick)
    except* OSError as group:
        for error in group.exceptions: print(group.message, error, error.__notes__)
    """, store)
    lines = [line for line in output.splitlines() if "could not be written" in line]
    assert len(lines) == 2
    for line in lines:
        for part in "2 of 2 runs failed", "scores.npz could not be written", "free some space", "in run": assert part in line
    assert not list((store / "runs").iterdir())
    assert not list(store.rglob("*.tmp"))
    nursery.run("carry_out(small)", store)
    assert_equal(store, undisturbed, n=2)


@pytest.mark.parametrize("what", ["data", "snapshots"])
def test_a_full_disk_is_named_for_tensors_too(what, nursery, tmp_path):
    limit, file = dict(data=(10_000, "digits-train-"), snapshots=(40_000, "snapshots.safetensors"))[what]
    output = nursery.run(f"""
    import resource
    if {what == 'snapshots'}:
        for images in data: runs._put_data(store, images)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try: carry_out([spec(60, width=64)])
    except OSError as error: print(error)
    """, tmp_path / "store")
    assert file in output and "could not be written" in output and "free some space" in output
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob("store/runs/*"))


def test_failing_diverging_and_dying_runs_leave_the_others_alone(nursery, undisturbed, tmp_path):
    store = tmp_path / "store"
    output = nursery.run("""
    def raises(): raise RuntimeError("a bug in the user's model")
    def dies(): os.kill(os.getpid(), signal.SIGKILL)
    def dies_once():
        try: Path(STORE, "died").touch(exist_ok=False)
        except FileExistsError: return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        dies()
    builders = dict(raises=raises, dies=dies, dies_once=dies_once)
    wild = dataclasses.replace(small[0], recipe=dataclasses.replace(small[0].recipe, lr=1e6))
    mixed = [spec(60, model=name) for name in builders] + [wild, *small]
    try: run_all(mixed, store, data, builders=builders, workers=2, **quick)
    except ExceptionGroup as group:
        print(group.message)
        for error in group.exceptions: print(type(error).__name__, error, *error.__notes__)
    print([store.has(one) for one in mixed])
    print(store.read(wild).provenance["status"], store.read(wild).provenance["reason"], len(store.read(wild).metrics))
    run_all([wild], store, **quick)
    """, store)
    assert "2 of 6 runs failed; the others are in" in output
    assert '''RuntimeError a bug in the user's model in run''' in output and '"model": "raises"' in output
    [death] = re.findall("RuntimeError its process died three times.*", output)
    assert "memory" in death and "run the plan again" in death and '"model": "dies"' in death
    assert "[False, False, True, True, True, True]" in output
    assert "diverged logits holds NaN or infinity: the training has diverged, lower the learning rate" in output
    assert "1 of 1 runs diverged" in output
    for name in {path.name for path in (store / "runs").iterdir()} - {path.name for path in (undisturbed / "runs").iterdir()}:
        shutil.rmtree(store / "runs" / name)
    assert_equal(store, undisturbed, n=2)


def test_two_at_once_do_no_run_twice(nursery, tmp_path):
    store = tmp_path / "store"
    code = """
    def build():
        with open(Path(STORE, "built"), "a") as file: file.write(f"{os.getppid()}\\n")
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    several = [spec(400, model="counted", seed=seed) for seed in range(8)]
    results = run_all(several, store, data, builders=dict(counted=build), workers=1, **quick)
    assert [result.spec["seed"] for result in results] == list(range(8))
    """
    pids = [nursery.start(code, store) for _ in range(2)]
    assert [nursery.wait(pid) for pid in pids] == [0, 0], nursery.log.read_text()
    built = (store / "built").read_text().split()
    assert len(built) == 8
    assert len(list((store / "runs").iterdir())) == 8
