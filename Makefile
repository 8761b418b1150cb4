# make demo | run | test | check | bench | bench-serving | bench-training | rpc. Everything happens in .venv; nothing else on the machine is touched.
PYTHON ?= python3
# Where torch alone comes from, if not from pip's usual index: one of PyTorch's own, for the CPU or a CUDA build.
TORCH_INDEX_URL ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo run test check format bench bench-serving bench-training rpc clean

setup: $(READY)

# torch first and alone: with it there, nothing later asks for another build of it.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,grpc,tracing,runner,worker,demo,dev]'
	touch $(READY)

demo: setup
	$(BIN)/python -m examples.demo

run: setup
	$(BIN)/octet serve

# Three processes, for tests wait a lot; files in the order of tests/conftest.py. pytest-xdist waits for ever when it
# restarts a process that has crashed while it distributes files.
test: check
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 tests --ignore tests/unit

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.main_job

# The classes of the protocol's messages, in a descriptor pool of their own: docs/adr/0012-grpc.md says why.
RPC := app/rpc/open_inference
rpc: setup
	PATH=$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I . --python_out=. --mypy_out=quiet:. $(RPC).proto
	sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $(RPC)_pb2.py
	sed -i 's/  # noqa: .*//' $(RPC)_pb2.pyi
	sed -i '1i # ruff: noqa' $(RPC)_pb2.py $(RPC)_pb2.pyi
	$(BIN)/ruff format $(RPC)_pb2.py $(RPC)_pb2.pyi

# The other servers live in virtual environments of their own, in OCTET_BENCH_HOME or the user's cache.
bench-serving: setup
	-$(BIN)/python -m benchmarks.serving install
	$(BIN)/python -m benchmarks.serving all --plots docs

# DATA is a folder with resnet20.safetensors and cifar10.npz. What is in FOUND already is not measured again.
DATA ?= ../shared/data/cifar10
FOUND ?= training.json
bench-training: setup
	$(BIN)/python -m benchmarks.training $(DATA) --json $(FOUND)

clean:
	rm -rf $(VENV) octet-data .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
