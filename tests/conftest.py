"""What all tests share: a copy of the project to work in, commands with readable failures, the line at the end."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nursery import ROOT, Nursery

PROJECT = ["datadiet", "nbs", "tools", "settings.ini", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"]
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("nbs/**/[!.]*.ipynb")
                   if ".ipynb_checkpoints" not in path.parts)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config):
    "Ctrl-C works in what the tests start, even where a shell started them in the background, with SIGINT ignored."
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"): return
    for item in items:
        if "long" in item.keywords: item.add_marker(pytest.mark.skip(reason="takes minutes: --long"))


def copy_project(to):
    "Copy the working tree as it is, so that a test may change files without touching the user's."
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir(): shutil.copytree(source, to / name, ignore=skip)
        elif source.exists(): shutil.copy2(source, to / name)
    return to


@pytest.fixture
def project(tmp_path):
    "A copy of the project for one test."
    return copy_project(tmp_path)


@pytest.fixture(scope="session")
def shared_project(tmp_path_factory):
    "A copy of the project for all notebooks that one worker runs."
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    "Where processes that are to be killed come from."
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


def run(*command, cwd, **env):
    "Run `command` and return what it printed; a failure shows the end of it."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **{name: str(value) for name, value in env.items()}}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-60:])
        pytest.fail(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{end}", pytrace=False)
    return done.stdout


def tool(name):
    "A command of this environment."
    return Path(sys.executable).with_name(name)


def pytest_unconfigure(config):
    "The last line: what passed and what failed, notebooks and tests together."
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"): return
    count = lambda *kinds: sum(len(reporter.stats.get(kind, [])) for kind in kinds)
    print(f"{count('passed')} passed, {count('failed', 'error')} failed")
