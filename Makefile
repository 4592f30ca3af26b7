# make bench: install, train, evaluate and print the table.   make test: install and run the tests.
# make test-mmdet: the reference detector beside ours, with its own packages.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export OMP_NUM_THREADS := 1

.PHONY: bench test test-mmdet lint clean

bench: $(READY)
	$(VENV)/bin/twinbench bench --recipe shapes --methods teacher,flow-matching,rcgm,twinflow --results runs/results

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2

test-mmdet: $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[mmdet,test]'
	$(VENV)/bin/python -m pytest tests/test_judges_mmdet.py

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: twinbench needs Python 3.11 or newer; make PYTHON=python3.11"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist *.egg-info
