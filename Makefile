# What each target does is in README.md. Each sets itself up; nothing has to be installed by hand.
.DEFAULT_GOAL := help
.PHONY: help lab edit test site bench lint clean

PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
READY := .venv/.ready

# A neighbour that keeps the other core busy must not slow the spinning threads of ours.
export OMP_WAIT_POLICY := passive
export JUPYTER_CONFIG_PATH := $(CURDIR)/.jupyter

help:
	@echo "make lab     read and run the chapters in JupyterLab"
	@echo "make edit    write chapters: open book/ in JupyterLab"
	@echo "make test    run the unit tests and every chapter; CHAPTER=06 runs one, and its module's tests"
	@echo "make site    build the static site in _build/html/"
	@echo "make bench   measure the companion beside the libraries that it mirrors"
	@echo "make lint    check the style, the formatting and the import contracts"
	@echo "make clean   remove everything that these commands made"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "Setting up .venv (a few minutes, once) ..."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@

lab: $(READY)
	$(BIN)/jupyter-book build . -W -n --keep-going -q --path-output _build/lab --builder custom --custom-builder notebooks
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. notebooks/index.ipynb

edit: export JUPYTER_CONFIG_PATH := $(CURDIR)/.jupyter/authors
edit: $(READY)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. book/index.md

ifdef CHAPTER
PAGE := $(wildcard book/$(CHAPTER)-*.md)
PAGES := $(notdir $(wildcard book/[0-9]*.md book/a1-*.md))
$(if $(PAGE),,$(error there is no chapter $(CHAPTER); CHAPTER is one of $(foreach page,$(PAGES),$(firstword $(subst -, ,$(page))))))
MODULE := $(subst -,_,$(patsubst book/$(CHAPTER)-%.md,%,$(PAGE)))
endif

test: $(READY)
	$(BIN)/python -m pytest -n logical --maxprocesses=4 $(if $(CHAPTER),$(PAGE) $(wildcard tests/test_$(MODULE).py),--cov)

site: $(READY)
	$(BIN)/jupyter-book build . -W -n --keep-going

bench: $(READY)
	$(BIN)/python -m benchmarks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python book/_ext/lint.py
	$(BIN)/lint-imports

clean:
	rm -rf .venv _build book/api dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
