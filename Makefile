# The commands of everyday work; `make check` is what CI runs.
.PHONY: setup test lint check docs

setup:  ## install into the active environment, with the tests' tools
	pip install -c constraints.txt -e ".[test]"

test:  ## run the tests that need no GPU and no long wait
	pytest

lint:  ## format, rules, types: report only
	ruff format --check .
	ruff check .
	mypy

check:  ## everything CI runs, in a fresh virtual environment
	bash .ci/run

docs:  ## write the pages that are generated from the code
	python tools/write_docs.py
