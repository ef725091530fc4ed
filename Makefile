# `make demo` and `make test` are all a newcomer needs: both make the environment (.venv) first.
PYTHON ?= python3
VENV ?= .venv
TOOLBOXES ?= .venv-downstream
DETECTRON2 ?= .venv-detectron2
GPU ?= .venv-gpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
RUN = $(VENV)/bin/python
# Two files at a time, in their order: those with few and long tests would come last otherwise, and leave a core without work.
TWO_FILES = -n 2 --dist loadfile --no-loadscope-reorder
DEMO_OUTPUT ?= output/demo
DATA ?=
CASES ?=
MINUTES ?=
SEED ?=

ABLATION ?=
DENSE ?=
WEIGHTS ?=
SOURCE ?=
ADELAIDET ?=

.PHONY: help demo demo-detect install test test-fast test-all test-downstream test-detectron2 lint format dist benchmark reproduce \
  clean test-kill test-two-hosts test-gpu-kernels fuzz soak

help:            ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

install: $(VENV)/.installed  ## the environment: paddlepaddle (CPU), this package, what tests and demo need

$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt -e ".[dev,docs]"
	@touch $@

demo: install    ## pre-train, extract, evaluate, draw: minutes on two cores (DATA=DIR for your own folder)
	$(RUN) tools/demo.py --output $(DEMO_OUTPUT) $(if $(DATA),--data $(DATA))

test: install    ## the test suite, two files at a time
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(TWO_FILES)

test-fast: install  ## the part that depends on Paddle most and starts no training (what CI runs on the second Paddle)
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(TWO_FILES) tests/models tests/evaluation tests/weights/test_convert.py tests/weights/test_load.py \
	  tests/weights/test_pickles.py tests/data/test_loader.py tests/test_api.py tests/test_export.py tests/cli/test_extract_weight.py

test-all: test lint  ## everything that CI checks

demo-detect: $(TOOLBOXES)/.installed  ## FCOS from WEIGHTS=W and from random weights on DATA=DIR, a few dozen images in COCO layout
	$(if $(and $(DATA),$(WEIGHTS)),,$(error say which: make demo-detect DATA=DIR WEIGHTS=W, with images in COCO's layout in DIR))
	$(TOOLBOXES)/bin/python tools/demo_detect.py --data $(DATA) --weights $(WEIGHTS) --output output/demo_detect

test-downstream: $(TOOLBOXES)/.installed  ## PaddleDetection, -Clas and -Seg from PyPI train from our weights (DATA=DIR: COCO layout)
	PYTHONPATH=$(CURDIR) $(TOOLBOXES)/bin/python tests/integrations/prove.py --scratch output/downstream $(if $(DATA),--data $(DATA))

$(TOOLBOXES)/.installed: tests/integrations/requirements.txt
	$(PYTHON) -m venv $(TOOLBOXES)
	$(TOOLBOXES)/bin/python -m pip install --quiet --upgrade pip
	$(TOOLBOXES)/bin/python -m pip install --quiet -r tests/integrations/requirements.txt
	$(TOOLBOXES)/bin/python -m pip install --quiet --no-deps paddledet==2.6.0 paddleclas==2.6.0 paddleseg==2.8.0
	@touch $@

test-detectron2: install $(DETECTRON2)/.installed  ## detectron2 built from SOURCE=DIR (ADELAIDET=DIR too) trains from our weights: slow
	PYTHONPATH=$(CURDIR) $(RUN) tests/integrations/prove_detectron2.py --reference --scratch output/detectron2 \
	  --source $(SOURCE) $(if $(ADELAIDET),--adelaidet $(ADELAIDET))
	PYTHONPATH=$(CURDIR) $(DETECTRON2)/bin/python tests/integrations/prove_detectron2.py --scratch output/detectron2 \
	  $(if $(ADELAIDET),--adelaidet $(ADELAIDET)) $(if $(DATA),--data $(DATA))

# Copies are built: a checkout stays as it is. AdelaiDet's C++ names a type in a way that new versions of torch refuse, twice.
$(DETECTRON2)/.installed: tests/integrations/requirements_detectron2.txt
	$(if $(SOURCE),,$(error say where detectron2 is: make test-detectron2 SOURCE=DIR, a checkout))
	$(PYTHON) -m venv $(DETECTRON2)
	$(DETECTRON2)/bin/python -m pip install --quiet --extra-index-url $(TORCH_INDEX) -r tests/integrations/requirements_detectron2.txt
	rm -rf $(DETECTRON2)/detectron2 $(DETECTRON2)/AdelaiDet
	cp -r $(SOURCE) $(DETECTRON2)/detectron2
	MAX_JOBS=1 $(DETECTRON2)/bin/python -m pip install --quiet --no-build-isolation --no-deps $(DETECTRON2)/detectron2
	$(if $(ADELAIDET),cp -r $(ADELAIDET) $(DETECTRON2)/AdelaiDet)
	$(if $(ADELAIDET),sed -i '/AT_DISPATCH/s/\.type()/.scalar_type()/' \
	  $(DETECTRON2)/AdelaiDet/adet/layers/csrc/BezierAlign/BezierAlign_cpu.cpp)
	$(if $(ADELAIDET),MAX_JOBS=1 $(DETECTRON2)/bin/python -m pip install --quiet --no-build-isolation --no-deps $(DETECTRON2)/AdelaiDet)
	@touch $@

test-kill: install  ## a training killed at 20 moments and resumed each time, compared with an undisturbed one: 20 minutes (SEED=N)
	$(RUN) -m tests.reliability.kill $(if $(SEED),--seed $(SEED))

test-two-hosts: install  ## two hosts in network namespaces, the link cut and restored (as root)
	$(RUN) -m tests.reliability.two_hosts

test-gpu-kernels: $(GPU)/.installed  ## no GPU needed: every operator has a kernel in Paddle's GPU build: minutes, 760 MB to download
	$(GPU)/bin/python -m tests.gpu_kernels

$(GPU)/.installed: requirements-gpu.txt
	$(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python -m pip install --quiet -r requirements-gpu.txt
	@touch $@

fuzz: install    ## hostile configs, overrides, weights, packs and lists, ten thousand each: 40 minutes (CASES=...)
	$(RUN) tests/fuzz/fuzz.py $(if $(CASES),--cases $(CASES))

soak: install    ## an hour of training: memory and open files of every process, ten resumes (MINUTES=...)
	$(RUN) tests/reliability/soak.py $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: test-gpu
test-gpu:        ## tests, self-test and benchmarks with PYTHON=... that has a Paddle for GPUs, as a page gpu.md (DATA=DIR)
	$(PYTHON) -m tests.gpu $(if $(DATA),--data $(DATA))

lint: install    ## style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: install  ## rewrite the files in the project's style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

dist: install    ## wheel and sdist in dist/, checked: the wheel does the whole job in a clean environment and an empty folder
	rm -rf dist
	$(RUN) -m build --no-isolation --outdir dist
	$(RUN) -m twine check --strict dist/*
	tests/check_wheel.sh dist/*.whl

benchmark: install  ## speed and memory against baselines, on the CPU (DATA=DIR also measures reading your images)
	$(RUN) tools/benchmark.py loss
	$(RUN) tools/benchmark.py step --profile
	$(if $(DATA),$(RUN) tools/benchmark.py data --root $(DATA))
	$(if $(DATA),$(RUN) tools/benchmark.py loader --root $(DATA))

reproduce: install  ## random weights, MoCo-v2 and DenseCL at one budget: hours (DATA=DIR with train/ and val/, ABLATION=lambda|grid)
	$(if $(DATA),,$(error say which images: make reproduce DATA=DIR, with DIR/train/CLASS/... and DIR/val/CLASS/...))
	$(RUN) tools/reproduce.py --data $(DATA) $(if $(ABLATION),--ablation $(ABLATION)) $(if $(DENSE),--dense "$(DENSE)")

.PHONY: docs notebook
docs: install    ## this project's pages as a site in build/site, strictly: a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

notebook: install  ## execute docs/notebooks/first_run.ipynb and keep its outputs: minutes
	$(RUN) -m pip install --quiet -e ".[demo,notebook]"
	$(RUN) -m nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False docs/notebooks/first_run.ipynb

clean:           ## remove the environment and what the demo wrote
	rm -rf $(VENV) $(TOOLBOXES) $(DETECTRON2) $(GPU) $(DEMO_OUTPUT) output/downstream output/detectron2 log .pytest_cache .ruff_cache
