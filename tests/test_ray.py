"""A plan on a real Ray cluster, of two nodes on this machine; one of them is killed in the middle of it."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nursery import alive, assert_equal, until

pytestmark = pytest.mark.ray
# everything stays on 127.0.0.1, which Ray would replace by an address that other machines can reach
LOCAL = "from ray._private import services; services.get_node_ip_address = lambda *_: '127.0.0.1'"
RAY = [sys.executable, "-c", LOCAL + "; from ray.scripts.scripts import main; main()"]
NODE = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]


def processes(word):
    "The processes, by id, with `word` in their command, and the ids of their parents."
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_text().replace("\0", " ")
            if word in command: found[int(path.name)] = command, int((path / "stat").read_text().rsplit(")")[-1].split()[1])
        except OSError: pass
    return found


class Cluster:
    "Ray nodes on 127.0.0.1 that share a folder with a short name (sockets live in it)."
    def __init__(self, log):
        self.folder, self.log, self.nodes = tempfile.mkdtemp(prefix="ray", dir="/tmp"), open(log, "w"), []
        self.start("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self.folder}")

    def address(self):
        "Where the first node listens, once it does."
        find = lambda: re.search(r"address='(127\.0\.0\.1:\d+)'", Path(self.log.name).read_text())
        until(find)
        return find()[1]

    def start(self, *options):
        "One more node."
        env = os.environ | dict(RAY_USAGE_STATS_ENABLED="0")
        self.nodes.append(subprocess.Popen([*RAY, "start", *options, *NODE], env=env, stdin=subprocess.DEVNULL,
                                           stdout=self.log, stderr=self.log, start_new_session=True))

    def raylet(self, node):
        "The id of a node's raylet, once it is there."
        mine = lambda: [pid for pid, (command, parent) in processes("raylet/raylet ").items() if parent == self.nodes[node].pid]
        until(mine)
        return mine()[0]

    def close(self):
        "End every process of this cluster, and no other."
        for node in reversed(self.nodes): node.terminate()
        for node in self.nodes: node.wait()
        for pid in processes(self.folder): os.kill(pid, signal.SIGKILL)
        until(lambda: not processes(self.folder))
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path / "ray.log")
    yield cluster
    cluster.close()


def test_a_node_dies_and_the_plan_completes(cluster, nursery, tmp_path):
    store, several = tmp_path / "store", """
    def build():
        with open(Path(STORE, "built"), "a") as file: file.write(f"{os.getpid()} {os.getppid()}\\n")
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    builders, several = dict(mine=build), [spec(6000, model="mine", seed=seed) for seed in range(4)]
    """
    driver = nursery.start(several + f"""
    import ray
    {LOCAL}
    ray.init({cluster.address()!r}, log_to_driver=False, _node_ip_address="127.0.0.1")
    Path(STORE, "connected").touch()
    while ray.cluster_resources().get("CPU", 0) < 2: time.sleep(.1)
    results = run_all(several, store, data, engine="ray", builders=builders, progress=False, checkpoint_every=.2)
    assert [result.spec["seed"] for result in results] == list(range(4))
    """, store)
    until(lambda: (store / "connected").exists())               # so the driver belongs to the first node
    cluster.start(f"--address={cluster.address()}")
    raylet = cluster.raylet(1)

    def there():
        "The workers of the second node that have begun a run."
        lines = (store / "built").read_text().splitlines() if (store / "built").exists() else []
        return [int(pid) for pid, parent in map(str.split, lines) if int(parent) == raylet]
    until(lambda: there() and len(list(store.glob("unfinished/*/checkpoint.pt"))) == 2)
    os.kill(raylet, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in there()))
    left = 4 - len(list((store / "runs").iterdir()))
    nursery.run(several + "carry_out(several, builders=builders)", tmp_path / "undisturbed")
    assert nursery.wait(driver) == 0, nursery.log.read_text()
    assert left > 0
    assert len((store / "built").read_text().splitlines()) > 4  # a run was begun again
    assert_equal(store, tmp_path / "undisturbed")
