PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
QUICKSTART := nbs/guides/10_quickstart.ipynb
BENCHMARKS := $(wildcard nbs/benchmarks/*.ipynb)
EXPERIMENTS := $(wildcard nbs/experiments/*.ipynb)
TIER ?= digits

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help quickstart figures test docs test-docs lab wheel bench bench-gpu

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s%s\n", $$1, $$2}' Makefile

quickstart: $(READY)  ## score the digits, prune them, train again: the table and the figure, in minutes
	$(BIN)/python tools/run_notebook.py --flags slow $(QUICKSTART)
	@echo
	@echo 'the executed notebook   $(QUICKSTART)'
	@echo 'the table               nbs/results/digits_pruning.csv'
	@echo 'the figure              nbs/images/digits_pruning.png'

figures: $(READY)  ## the paper's figures; TIER=digits takes minutes, fashion and cpu hours, fast and paper a GPU
	DATADIET_TIER=$(TIER) $(BIN)/python tools/run_notebook.py $(EXPERIMENTS)

test: $(READY)  ## run every notebook, without what takes hours, and the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/docs

docs: $(READY)  ## build the site into _docs/
	OMP_NUM_THREADS=1 $(BIN)/python tools/docs

test-docs: docs  ## build the site and look at it with a browser (Chromium); screenshots in .cache/screenshots/
	$(BIN)/python -m pytest tests/docs

lab: $(READY)  ## open JupyterLab, with the hooks that keep notebooks clean; LAB=--no-browser passes options
	$(BIN)/nbdev_install_hooks
	$(BIN)/python -m ipykernel install --sys-prefix
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

wheel: $(READY)  ## build dist/ and try the wheel in an environment of its own, outside this folder
	rm -rf build dist
	$(BIN)/python -m pip install build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m venv --clear build/clean
	build/clean/bin/pip install dist/*.whl
	cd build && clean/bin/datadiet --version && clean/bin/python -c 'import datadiet.diet, datadiet.plot, datadiet.cli; print(datadiet.__file__)'

bench: .venv/.bench  ## measure speed and memory beside the other libraries: two hours; needs CIFAR-10 and Fashion-MNIST
	$(BIN)/python tools/run_notebook.py --flags slow $(BENCHMARKS)
	@echo
	@echo 'the tables              nbs/results/bench_*.csv'

bench-gpu: .venv/.bench  ## measure on a CUDA device: minutes
	$(BIN)/python tools/run_notebook.py --flags gpu $(BENCHMARKS)
	@echo
	@echo 'the tables              nbs/results/bench_*_gpu.csv'

# .venv holds what these two files ask for: when one of them changes, pip installs what is missing
$(READY): settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

.venv/.bench: $(READY)
	$(BIN)/python -m pip install -e '.[bench]'
	touch $@
