"""Data, networks and losses of the user's own, where it takes processes: workers inside runs, and more data than memory."""
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from conftest import ROOT, run
from datadiet.diet import score_dataset
from datadiet.inputs import as_data
from datadiet.runs import Store, list_runs
from datadiet.train import Recipe

RECIPE = Recipe(steps=20, batch_size=16, lr=.05, score_epoch=1)


class Rows(Dataset):
    "Two overlapping clouds of points; example `broken` cannot be read."
    targets = [i % 2 for i in range(200)]

    def __init__(self, broken=None): self.broken = broken

    def __len__(self): return 200

    def __getitem__(self, i):
        if i == self.broken: raise OSError("the disk is gone")
        return torch.randn(5, generator=torch.Generator().manual_seed(i)) + i % 2, i % 2


def net(): return nn.Linear(5, 2)


def scored(data, **options):
    return score_dataset(data, net, RECIPE, **{**dict(runs=2, workers=1, device="cpu", progress=False), **options})


def test_workers_inside_of_runs_change_nothing(tmp_path):
    expected = scored(as_data(Rows()), score="grand")
    found = scored(as_data(Rows(), num_workers=2), score="grand", store=tmp_path / "store")
    assert np.array_equal(found.values, expected.values)
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "store/runs").iterdir())]
    again = scored(as_data(Rows()), score="grand", store=tmp_path / "store")    # how it is read is not what it is
    assert np.array_equal(again.values, expected.values)
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "store/runs").iterdir())]


def test_an_exception_in_a_worker_of_a_run_names_the_example():
    with pytest.raises(ValueError) as caught: scored(as_data(Rows(broken=40), num_workers=2))
    assert str(caught.value) == "example 40 of Rows could not be read (OSError: the disk is gone)"
    assert any("in __getitem__" in note for note in caught.value.__notes__)     # where it was raised
    assert any("in run" in note for note in caught.value.__notes__)


def hinge(logits, labels): return F.multi_margin_loss(logits, labels, reduction="none")


def test_a_loss_of_the_users_own_is_trained_scored_and_remembered(tmp_path):
    names = ("el2n", "grand", "loss")
    usual, named, own = (scored(as_data(Rows()), score=names, runs=1, loss=loss, store=tmp_path) for loss in (None, F.cross_entropy, hinge))
    for name in ("el2n", "grand"): assert np.array_equal(named[name].values, usual[name].values)
    assert not np.array_equal(own["el2n"].values, usual["el2n"].values)
    assert own["loss"].values.min() == 0 < usual["loss"].values.min()           # a hinge is flat beyond the margin
    flat = own["loss"].values == 0
    assert (own["grand"].values[flat] == 0).all() and (own["grand"].values[~flat] > 0).all()
    assert (own["grand"].meta["loss"], "loss" in usual["grand"].meta) == ("hinge", False)
    store = Store(tmp_path)
    assert sorted(str(store.read(name).spec.get("loss")) for name in list_runs(store).hash) == ["None", "cross_entropy", "hinge"]
    with pytest.raises(ValueError, match="reduction='mean'"): scored(as_data(Rows()), score="grand", runs=1, loss=nn.CrossEntropyLoss())


class Words(nn.Module):
    "Word numbers and a mask by name; an object with logits, as networks from Hugging Face give."
    def __init__(self): super().__init__(); self.words = nn.Embedding(20, 4); self.head = nn.Linear(4, 2)

    def forward(self, ids, mask):
        self.logits = self.head((self.words(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return self


def test_hugging_face_rows_are_scored_by_name():
    datasets = pytest.importorskip("datasets")
    ids = [[i % 2 + 2 * (i % 5), i % 20, 0] for i in range(64)]
    rows = datasets.Dataset.from_dict(dict(ids=ids, mask=[[1, 1, 0]] * 64, label=["a" if i % 2 else "b" for i in range(64)]))
    found = score_dataset(rows, Words, RECIPE, ("el2n", "grand"), runs=1, workers=1, device="cpu", progress=False)
    assert np.isfinite(found["grand"].values).all() and found["grand"].values.std() > 0
    kept = rows.select(np.argsort(found["el2n"].mean())[:10])                   # and back again
    assert len(kept) == 10


def test_more_data_than_memory():
    "1.5 GB pass through a network, a worker and this process, and neither grows by more than a tenth of it."
    code = """
import resource, torch
from datadiet.data import predict
from datadiet.inputs import as_data
class Large:
    targets = [i % 2 for i in range(1500)]
    def __len__(self): return 1500
    def __getitem__(self, i): return torch.full((500, 500), i / 1500), i % 2
model = torch.nn.Sequential(torch.nn.AvgPool2d(500), torch.nn.Flatten(), torch.nn.Linear(1, 2))
data = as_data(Large(), num_workers=1)
predict(model, data.subset(range(32)), batch_size=16)
peak = lambda: [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
before = peak()
assert predict(model, data, batch_size=16).shape == (1500, 2)
print(*(after - b for after, b in zip(peak(), before)))
"""
    grown = run(sys.executable, "-W", "ignore", "-c", code, cwd=ROOT, PYTHONPATH=ROOT, OMP_NUM_THREADS=1)
    assert all(int(megabytes) < 150 for megabytes in grown.split()), grown
