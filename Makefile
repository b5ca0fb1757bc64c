# `make demo` and `make test` are all that a reader needs; both build the environment first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python run.py

.PHONY: demo test lint seeds clean

demo: $(VENV)/demo
	$(RUN) --mode all --gpt_variant nano --out_dir demo

test: $(VENV)/test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest

# The averages of README.md, about a quarter of an hour on two cores.
seeds: $(VENV)/demo
	$(VENV)/bin/python bench/seeds.py

$(VENV)/demo: requirements.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(VENV)/test: requirements-dev.txt requirements-export.txt $(VENV)/demo
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) demo
