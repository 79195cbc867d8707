# Two commands do everything: `make quickstart` and `make test`. Both make the same environment in .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OPTIMUM ?= .venv-optimum

.PHONY: quickstart test test-optimum test-gpu lint clean

quickstart: $(VENV)/installed
	$(BIN)/compress recipes/quickstart.yaml

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Opens deployed folders with optimum-onnx, in an environment of its own with the last transformers that it takes. With
# MODEL=FOLDER it opens those of that fine-tuned model, too.
test-optimum: $(VENV)/installed $(OPTIMUM)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/optimum_load.py --python $(abspath $(OPTIMUM))/bin/python \
	  $(if $(MODEL),--model $(MODEL))

# Every test that needs an NVIDIA device, unattended; GPU_JSON gets the results, the figures and the device's name.
GPU_JSON ?= gpu.json
test-gpu: $(VENV)/installed
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m pytest -p gpu_results -m gpu --gpu-json $(GPU_JSON) tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(OPTIMUM)/installed: constraints.txt
	$(PYTHON) -m venv $(OPTIMUM)
	grep -E '^(torch|onnx|onnxruntime|numpy)==' constraints.txt > $(OPTIMUM)/constraints.txt
	$(OPTIMUM)/bin/python -m pip install --quiet --constraint $(OPTIMUM)/constraints.txt \
	  'transformers==4.57.6' 'optimum-onnx==0.1.0' onnxruntime torch
	touch $@

clean:
	rm -rf $(VENV) $(OPTIMUM) build *.egg-info
