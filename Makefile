# make demo: the whole chain on this machine, no ROS installation, no PyTorch.   make test: ruff and the test suite.
# Both make their own virtual environment (.venv, .venv-test); a second run reuses it.

PYTHON ?= python3
DEMO_ENV := .venv
TEST_ENV := .venv-test
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
SOURCES := $(shell find endomust_core endomust_ros launch config models sros2 resource -type f \
             -not -name '*.pyc' 2>/dev/null) package.xml setup.py setup.cfg pyproject.toml constraints.txt

# A sourced ROS installation or another environment must not leak into these two.
unexport PYTHONPATH PYTHONHOME LD_LIBRARY_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export RMW_IMPLEMENTATION := rmw_fastrtps_cpp
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

.PHONY: demo test lint faults model clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo   play a recording through the node and write what it publishes to out/demo"
	@echo "make test   ruff and every test (CPU PyTorch, about two gigabytes of packages the first time)"
	@echo "make lint   ruff alone"
	@echo "make faults 10,000 hostile messages and broken surroundings against the running node (MESSAGES=1000 is shorter)"
	@echo "make model  train models/endomust-tiny further on rendered scenes and export it (an hour; MODEL=small: four), into out/models"
	@echo "make clean  remove build products and both environments"

demo: $(DEMO_ENV)/installed
	@echo "== demo: recording -> node -> out/demo"
	AMENT_PREFIX_PATH=$(CURDIR)/$(DEMO_ENV) $(DEMO_ENV)/bin/endomust demo --out out/demo

test: $(TEST_ENV)/installed lint
	@echo "== pytest"
	AMENT_PREFIX_PATH=$(CURDIR)/$(TEST_ENV) $(TEST_ENV)/bin/python -m pytest --timeout=300 $(PYTEST_ARGS)

MESSAGES ?= 10000
faults: $(TEST_ENV)/installed
	@echo "== faults: $(MESSAGES) hostile messages against the node -> out/faults"
	AMENT_PREFIX_PATH=$(CURDIR)/$(TEST_ENV) $(TEST_ENV)/bin/endomust bench faults --messages $(MESSAGES) --out out/faults

MODEL ?= tiny
model: $(TEST_ENV)/installed
	@echo "== model: config/refine-$(MODEL).yaml -> runs/endomust-$(MODEL) -> out/models/endomust-$(MODEL); goes on where it was stopped"
	if [ $(MODEL) = small ]; then $(TEST_ENV)/bin/endomust pretrain config/pretrain-small.yaml --only depth --out runs/endomust-small-1; fi
	$(TEST_ENV)/bin/endomust pretrain config/refine-$(MODEL).yaml --out runs/endomust-$(MODEL)
	$(TEST_ENV)/bin/endomust export runs/endomust-$(MODEL) --out out/models/endomust-$(MODEL)

lint: $(TEST_ENV)/installed
	@echo "== ruff"
	$(TEST_ENV)/bin/ruff check .

clean:
	rm -rf $(DEMO_ENV) $(TEST_ENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed like a user would, so that the demo tests the package and not the checkout.
$(DEMO_ENV)/installed: $(SOURCES) $(DEMO_ENV)/python
	@echo "== installing endomust_ros with its ROS wheels into $(DEMO_ENV) (no PyTorch)"
	rm -rf build
	$(DEMO_ENV)/bin/python $(PIP_INSTALL) '.[ros]'
	@touch $@

# Editable: tests see the sources, so only a change of the requirements installs again.
$(TEST_ENV)/installed: setup.py pyproject.toml constraints.txt $(TEST_ENV)/python
	@echo "== installing endomust_ros with everything the tests need into $(TEST_ENV) (PyTorch too: some minutes)"
	$(TEST_ENV)/bin/python $(PIP_INSTALL) --editable '.[ros,train,export,dev]'
	@touch $@

%/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' || { \
	  echo "make: Python 3.10 to 3.14 is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11 $(MAKECMDGOALS)"; \
	  exit 1; }
	@echo "== creating $* with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $* || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@
