# Every target does its own set-up: a virtual environment in .venv, made by $(PYTHON).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Tests run in two processes: threads of each would wait for those of the other.
test test-slow test-timm test-lower-bounds: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow test-timm test-lower-bounds check release-check bench docs site tables clean
.DEFAULT_GOAL := test

# Creates the embedded pretrained model, classifies held-out digits and draws what the memory holds.
demo: $(VENV)/.demo
	@echo 'Classifying held-out digits: some seconds.'
	$(BIN)/python scripts/demo.py

# The fast suite. Arguments for pytest: make test ARGS='-k unit -x'
test: $(VENV)/.test
	@echo 'Running the fast tests, then some of timm: about ten minutes on two cores.'
	$(BIN)/python -m pytest -m 'not slow' -n 2 $(ARGS)
	$(BIN)/python tests/timm_suite -q -n 2 -k 'test_mlfm_resnet or mlfm_mobilenetv2_010'

# Long sweeps over all networks.
test-slow: $(VENV)/.test
	@echo 'Running the slow tests: about half an hour on two cores.'
	$(BIN)/python -m pytest -m slow -n 2 $(ARGS)

# timm's own tests/test_models.py, of the installed version, on all of our models.
test-timm: $(VENV)/.test
	$(BIN)/python tests/timm_suite -q -n 2 $(ARGS)

# The fast suite with the oldest versions that pyproject.toml admits, except ONNX: the exporter of torch 2.6 and
# today's onnxscript have no batch norm in common.
test-lower-bounds:
	$(PYTHON) -m venv $(VENV)-lower
	$(VENV)-lower/bin/pip install --quiet -e '.[test]' -c tests/lower-bounds.txt
	$(VENV)-lower/bin/python -m pytest -m 'not slow' -n 2 --deselect tests/workflow/test_export.py --deselect tests/cli/test_cli_export.py --deselect tests/models/test_dct_networks.py::test_onnx --deselect tests/segmentation/test_segmentation_network.py::test_export $(ARGS)

# Style and likely bugs, types, and docstrings against signatures, as pyproject.toml configures them.
check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet mlfm_zoo mlfm_zoo_cli scripts examples benchmarks tests

# What the memory costs in time, against the plain trunk and a unit on pytorch_wavelets.
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/speed.py mlfm_mobilenetv2_100 mlfm_resnet50 $(ARGS)

# What has to hold before a release; builds into dist/ and publishes nothing.
release-check: $(VENV)/.release
	$(BIN)/python scripts/release_check.py $(ARGS)

# The documentation as a site, in site/; a warning fails, and so does a link that leads nowhere.
docs: $(VENV)/.docs
	@echo 'Building the site: some minutes.'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/site/test_pages.py $(ARGS)

# The same, and tests of it in a browser, which is looked for and, where there is none, installed.
site: $(VENV)/.site
	$(BIN)/python tests/site/find_browser.py
	@echo 'Building the site: some minutes.'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/site $(ARGS)

# Rewrites the tables of README and docs, and the files in results/. After a change of networks: ARGS=--recount
tables: $(VENV)/.test
	$(BIN)/python scripts/make_tables.py $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	@echo 'Installing what .[$*] needs into $(VENV): some minutes with an empty cache of pip, mostly for torch.'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lower .cache .mypy_cache .ruff_cache build dist site demo *.egg-info
