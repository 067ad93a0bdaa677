# agentmem: `make demo` and `make test` are all that a fresh machine with Python 3.11+ needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell grep '^torch==' constraints.txt)
# Oldest transformers: laid over the same environment, so that PyTorch is installed once.
OLDEST := $(CURDIR)/$(VENV)/oldest
# mem0, to compare with: laid over the same environment, too, so that nothing else sees what it needs.
MEM0   := $(CURDIR)/$(VENV)/mem0
# Tests whose outcome depends on transformers; the others run at the newest version only.
OLDEST_TESTS := tests/model tests/test_recipes.py tests/test_memory_llm.py tests/test_reads.py tests/test_streaming.py tests/test_memory3.py tests/test_traps.py tests/test_tools.py
# A process per core; the tests of a file stay together, since they share what is costly to set up.
WORKERS := --numprocesses auto --dist loadfile

ADAPTERS := google-adk haystack langchain langgraph llama-index openai-agents pydantic-ai smolagents
# Those that the checks run, with the newest versions only.
CHECKED_ADAPTERS := langchain langgraph openai-agents pydantic-ai
# Frameworks that docs/integrations.md has a recipe for.
INTEGRATIONS := agno crewai dspy litellm semantic-kernel

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Otherwise make removes what only patterns name, and installs anew each time.
.SECONDARY: $(ADAPTERS:%=adapters/%/.venv/stamp) $(CHECKED_ADAPTERS:%=$(VENV)/adapters/%/stamp) $(INTEGRATIONS:%=$(VENV)/integrations/%/stamp)
.PHONY: help demo test check test-newest test-oldest test-mem0 test-adapters check-adapters test-integrations conformance docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/core.stamp ## two real processes: one is told facts, a later one remembers them (no download of a model)
	$(BIN)/agentmem demo

test: check test-oldest test-mem0 test-newest ## everything: linters, types, tests at both ends of the transformers range

check: $(VENV)/dev.stamp ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-newest: $(VENV)/dev.stamp ## all tests, with the versions of constraints.txt
	$(BIN)/pytest $(WORKERS)

test-oldest: $(VENV)/oldest.stamp ## the tests that touch transformers, with the oldest supported one
	PYTHONPATH="$(OLDEST)" $(PIP) check
	PYTHONPATH="$(OLDEST)" $(BIN)/python -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH="$(OLDEST)" $(BIN)/pytest $(WORKERS) $(OLDEST_TESTS)

test-mem0: $(VENV)/mem0.stamp ## agentmem.compat.mem0 against mem0 itself
	PYTHONPATH="$(MEM0)" $(BIN)/pytest tests/compat/against_mem0.py

conformance: $(VENV)/dev.stamp ## the official MCP conformance tool against both servers; fetches it with npm
	npm install --silent --no-audit --no-fund --prefix $(VENV)/conformance node@22 @modelcontextprotocol/conformance@0.1.16
	$(BIN)/python tests/server/mcp_conformance.py $(VENV)/conformance

test-adapters: $(ADAPTERS:%=adapter-%) ## the tests of every adapter, each in an environment of its own (`make adapter-langgraph`: of one)

adapter-%: adapters/%/.venv/stamp
	cd adapters/$* && .venv/bin/python -m pytest
	cd adapters/$* && PYTHONPATH="$(CURDIR)/adapters/$*/.venv/oldest" .venv/bin/python -m pytest

check-adapters: $(CHECKED_ADAPTERS:%=check-adapter-%) ## some adapters, with the newest versions, in environments over this one

check-adapter-%: $(VENV)/adapters/%/stamp
	cd adapters/$* && "$(abspath $(<D))/bin/python" -m pytest $(WORKERS)

test-integrations: $(INTEGRATIONS:%=integration-%) ## the recipes of docs/integrations.md, each with its framework (`make integration-dspy`: one)

integration-%: $(VENV)/integrations/%/stamp $(VENV)/dev.stamp
	$(BIN)/python docs/run_integrations.py $* $(VENV)/integrations/$*/bin/python

# The frameworks know nothing of agentmem, so their environments need no PyTorch.
$(VENV)/integrations/%/stamp: docs/integrations/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --requirement $<
	@touch $@

docs: $(VENV)/dev.stamp ## write docs/cli.md anew from the program's own help, and draw the pictures of docs/recipes.md
	$(BIN)/python docs/build_cli.py
	$(BIN)/python docs/build_pictures.py

# The constraints of an adapter's environment: its own, and those of the core for everything else.
CONSTRAIN = awk -F== 'NR == FNR { own[tolower($$1)] = 1; print; next } !(tolower($$1) in own)' adapters/$*/constraints.txt constraints.txt > $(@D)/constraints.txt

# Newest versions in the environment, the oldest supported ones of the framework beside it, to be laid over them.
# Where a framework wants another version of something than the core's own tests use, its adapter's pin holds.
adapters/%/.venv/stamp: adapters/%/pyproject.toml adapters/%/constraints.txt adapters/%/constraints-oldest.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(CONSTRAIN)
	$(@D)/bin/python -m pip --disable-pip-version-check install -c $(@D)/constraints.txt "$(TORCH)"
	$(@D)/bin/python -m pip --disable-pip-version-check install -c $(@D)/constraints.txt --editable . --editable "adapters/$*[test]"
	rm -rf $(@D)/oldest
	$(@D)/bin/python -m pip --disable-pip-version-check install --no-deps --target $(@D)/oldest --requirement adapters/$*/constraints-oldest.txt
	@touch $@

# Over the core's environment, whose PyTorch, transformers and pytest are seen from here: only what differs is installed.
$(VENV)/adapters/%/stamp: adapters/%/pyproject.toml adapters/%/constraints.txt $(VENV)/dev.stamp
	$(PYTHON) -m venv --without-pip $(@D)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/core.pth"
	$(CONSTRAIN)
	$(@D)/bin/python -m pip --disable-pip-version-check install -c $(@D)/constraints.txt --editable . --editable "adapters/$*[test]"
	@touch $@

clean: ## remove the environment and all caches
	rm -rf $(VENV) adapters/*/.venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "agentmem needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyTorch first and pinned: any later resolution then finds it satisfied and downloads no second one.
$(VENV)/core.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt "$(TORCH)"
	$(PIP) install -c constraints.txt --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(PIP) install -c constraints.txt --editable ".[dev]"
	@touch $@

$(VENV)/oldest.stamp: constraints-oldest.txt $(VENV)/dev.stamp
	rm -rf "$(OLDEST)"
	$(PIP) install --no-deps --target "$(OLDEST)" --requirement constraints-oldest.txt
	@touch $@

$(VENV)/mem0.stamp: constraints-mem0.txt $(VENV)/dev.stamp
	rm -rf "$(MEM0)"
	$(PIP) install --no-deps --target "$(MEM0)" --requirement constraints-mem0.txt
	@touch $@
