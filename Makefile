# Every target makes the environment (.venv) first if it is missing or out of date, and costs nothing if it is not.
# Variables: PYTHON, the interpreter that .venv is made with (3.10 to 3.12); ARGS, more arguments for pytest; DEVICE
# (cuda or cpu) and MINUTES of make gpu.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
DET := maskrcnn_swinv2_t_shapes
SEG := upernet_swinv2_t_shapes
# What make predict draws on, and by which checkpoint: of make train, unless another is named.
IMAGES := data/shapes/images/validation
MODEL = $(shell cat work_dirs/$(DET)/last_checkpoint 2>/dev/null)
# A process for each core, each with one thread: their threads would wait for one another.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: help setup data train train-upernet predict test test-all test-compat lint bench gpu clean

help: ## this list
	@echo 'swinv2_mm: Swin Transformer V2 for MMDetection and MMSegmentation'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-14s %s\n' "$$name" "$$what"; done
	@echo
	@echo '  make setup PYTHON=python3.11    choose the interpreter of .venv (3.10 to 3.12)'
	@echo '  make test ARGS="-k window -x"   more arguments for pytest'
	@echo
	@echo 'No GPU? The default index serves the CUDA build of torch (several GB). For the CPU build:'
	@echo '  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup'
	@echo 'Another CUDA (cu126, ...), or the one that fits the driver (auto): UV_TORCH_BACKEND=auto make setup'

setup: ## make .venv: pinned packages, mmcv compiled for this machine (minutes once, then nothing)
	@$(or $(PYTHON),python3) tools/setup_env.py

data: setup ## generate the small "shapes" data set in data/shapes
	@$(PY) tools/make_shapes.py data/shapes

train: data ## train Mask R-CNN with SwinV2-T on the shapes, print COCO bbox and segm mAP, write pictures
	$(call train_and_test,$(DET))

train-upernet: data ## the same with UperNet: mIoU
	$(call train_and_test,$(SEG))

predict: setup ## draw what the detector of make train finds on IMAGES=folder, and on a video of them (or MODEL=file)
	@[ -e "$(MODEL)" ] || { echo 'No checkpoint: run make train first, or name one, as MODEL=epoch_12.pth'; exit 2; }
	@$(PY) tools/predict.py "$(MODEL)" "$(IMAGES)" --out work_dirs/predictions --force
	@$(PY) tools/make_video.py "$(IMAGES)" work_dirs/predictions/given.mp4
	@$(PY) tools/predict.py "$(MODEL)" work_dirs/predictions/given.mp4 --out work_dirs/predictions/video --force
	@echo 'pictures: work_dirs/predictions/pictures; video: work_dirs/predictions/video/pictures/given.mp4'

test: setup ## run the tests, but for the slow ones
	@$(TESTS) -m 'not slow' $(ARGS)

test-all: setup ## run all tests, in all environments
	@$(TESTS) $(ARGS)
	@$(MAKE) --no-print-directory test-compat

test-compat: setup ## run the tests beside older torch and the successors of OpenMMLab's packages
	@PYTHONPATH=tools $(PY) tests/environments.py $(ENVIRONMENTS)

lint: setup ## ruff, and bash's syntax check of the scripts
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet . || (.venv/bin/ruff format --diff .; exit 1)
	@for script in .ci/run tools/*.sh; do if [ -e "$$script" ]; then bash -n "$$script" || exit 1; fi; done

bench: setup ## time and memory of the backbone beside the peers that import here (a few minutes)
	@$(PY) benchmarks/backbone.py --short

gpu: setup ## all that a GPU has to show, in ten minutes: tests and speed (benchmarks/results/gpu_NAME.md)
	@$(PY) benchmarks/gpu.py --device $(or $(DEVICE),cuda) --minutes $(or $(MINUTES),10)

clean: ## remove caches and build leftovers (keeps .venv, data and work_dirs)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# Training goes on where it was interrupted, and ends at once where it had finished.
define train_and_test
	@$(PY) tools/train.py configs/$(1).py --resume
	@$(PY) tools/test.py configs/$(1).py "$$(cat work_dirs/$(1)/last_checkpoint)" --show-dir work_dirs/$(1)/pictures
	@echo 'pictures: work_dirs/$(1)/pictures'
endef
