# Two commands on a fresh Debian machine: make demo, make test. Everything they need they fetch.
# PYTHON=python3.12 chooses the interpreter; TESTS='-k pool' is handed to pytest.

# Where Debian keeps iptables and nft, which is not in everybody's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

VENV := .venv
# What scripts/prepare.sh could install, in pip's words: "gateway,test" or "test".
EXTRAS = $$(cat $(VENV)/extras)

.PHONY: all demo test lint types prepare clean

all: test

demo: prepare
	$(VENV)/bin/python examples/demo/demo.py

test: WANTED = programs
test: prepare
	GCB_EXTRAS=$(EXTRAS) $(VENV)/bin/tox run -- $(TESTS)

lint types: prepare
	GCB_EXTRAS=$(EXTRAS) $(VENV)/bin/tox run -e $@

prepare:
	@sh scripts/prepare.sh $(VENV) $(WANTED)

clean:
	rm -rf $(VENV) .tox .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
