"""The tiers that need a GPU, dry: every experiment computes its tables with their networks and recipes, on a CPU and a toy CIFAR-10."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from datadiet import runs
from datadiet.diet import TIERS, Tier

SIDE, N_TRAIN, N_TEST, STEPS, EPOCHS = 8, 1100, 200, 16, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder with a toy CIFAR-10, small pictures of a colour for each class under noise, and labels as of people."
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = {split: np.arange(n) % 10 for split, n in dict(train=N_TRAIN, test=N_TEST).items()}
    colours, arrays = rng.integers(60, 196, (10, 1, 1, 3)), {}
    for split, y in labels.items():
        noise = rng.normal(0, 40, (len(y), SIDE, SIDE, 3))
        arrays |= {f"x_{split}": (colours[y] + noise).clip(0, 255).astype(np.uint8), f"y_{split}": y}
    np.savez(folder / "cifar10.npz", **arrays)
    people = {key: np.where(rng.random(N_TRAIN) < .1, rng.integers(0, 10, N_TRAIN), labels["train"])
              for key in ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")}
    np.savez(folder / "people.npz", **people, cifar10h_counts=1 + 40 * np.eye(10, dtype=int)[labels["test"]])
    return folder


def shrink(tier: Tier) -> Tier:
    "The same protocol, with sixteen steps of a thin network."
    milestones = tuple(step * STEPS // tier.recipe.steps for step in tier.recipe.milestones)
    recipe = replace(tier.recipe, steps=STEPS, milestones=milestones, score_epoch=EPOCHS / 2)
    return replace(tier, width=4, recipe=recipe, runs=2, whole=2, seeds=1, fractions=(.5, .3), epochs=(EPOCHS / 4, EPOCHS / 2))


def computing_cells(name: str) -> list[str]:
    "The code of an experiment up to the last cell that writes a table."
    cells = json.loads((ROOT / f"nbs/experiments/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = [source for source in code if not source.startswith(("#| slow", "#| hide"))]
    return code[:1 + max(i for i, source in enumerate(code) if "write_table(" in source)]


def one_by_one(specs, attempt, workers, devices, bar) -> dict:
    "In place of `runs._locally`: no processes, whose start would take longer than everything else."
    for spec in specs: attempt(spec, devices[0])
    return {}


@pytest.mark.parametrize("name", ["10_pruning", "20_noise_window", "30_kernel_velocity", "40_mode_connectivity", "50_grand_at_init",
                                  "60_score_atlas", "70_human_noise"])
@pytest.mark.parametrize("tier", ["fast", "paper"])
def test_dry_run(tier, name, data, tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path / "experiments")
    for key, value in dict(TIER=tier, DATA=data, STORE=tmp_path / "runs", HUMAN_LABELS=data / "people.npz").items():
        monkeypatch.setenv(f"DATADIET_{key}", str(value))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    monkeypatch.setattr(runs, "_locally", one_by_one)
    monkeypatch.setitem(TIERS, tier, shrink(TIERS[tier]))
    space = {"__name__": "__main__"}                       # so that worker processes are sent the functions themselves
    for source in computing_cells(name):
        exec(source, space)
        if "SIZE" in space: space |= dict(SIZE=20, COUNT=3)        # the groups of 30_kernel_velocity as at `tiny`
    tables = [pd.read_csv(path) for path in sorted((tmp_path / "results").glob(f"{tier}_*.csv"))]
    assert tables, "no table was written"
    for table in tables: assert len(table) and (table["tier"] == tier).all() and (table["data"] == "cifar10").all()
