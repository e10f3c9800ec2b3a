PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
QUICKSTART := nbs/guides/10_quickstart.ipynb

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help quickstart test docs lab

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-12s%s\n", $$1, $$2}' Makefile

quickstart: $(READY)  ## score the digits, prune them, train again: the table and the figure, in minutes
	$(BIN)/python tools/run_notebook.py --flags slow $(QUICKSTART)
	@echo
	@echo 'the executed notebook   $(QUICKSTART)'
	@echo 'the table               nbs/results/digits_pruning.csv'
	@echo 'the figure              nbs/images/digits_pruning.png'

test: $(READY)  ## run every notebook and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

docs: $(READY)  ## build the site into _docs/
	$(BIN)/python tools/docs.py

lab: $(READY)  ## open JupyterLab, with the hooks that keep notebooks clean
	$(BIN)/nbdev_install_hooks
	$(BIN)/python -m ipykernel install --sys-prefix
	$(BIN)/jupyter lab

# .venv holds what these two files ask for: when one of them changes, pip installs what is missing
$(READY): settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@
