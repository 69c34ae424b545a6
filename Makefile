# make demo   a real server and a real device on the shipped model; needs no torch
# make test   lint, types and all tests
# make check-deploy   every file in deploy/ by its own tool (deploy/install-checkers.sh has Debian's)
# make proto  write the stubs in proto/ again
PYTHON ?= $(shell command -v python3.11 || command -v python3)
FOLDERS := common device server training evaluation cli

.PHONY: demo test check-deploy lint proto proto-check clean

demo: .venv-demo/ready
	.venv-demo/bin/offramp demo

test: lint proto-check
	.venv/bin/pytest

check-deploy: .venv/ready
	.venv/bin/python deploy/check.py

lint: .venv/ready .typecheck/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(addprefix .typecheck/offramp/,$(FOLDERS) ray) tests

proto: .venv-proto/ready
	.venv-proto/bin/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto \
	  proto/offramp/v1/onnx_subset.proto proto/offramp/v1/inference.proto
	.venv-proto/bin/python -m grpc_tools.protoc -I proto --grpc_python_out=proto proto/offramp/v1/inference.proto

proto-check: proto
	git diff --exit-code -- proto

.venv-demo/ready: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check '.[device,server]'
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[device,server,sign,otel,train,bench,dev]'
	touch $@

# A release of the compiler whose stubs run with every protobuf that pyproject.toml allows.
.venv-proto/ready:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.75.1
	touch $@

# For the type checker, the folders under the name that they are installed as.
.typecheck/ready:
	mkdir -p .typecheck/offramp
	for folder in $(FOLDERS); do ln -sfn ../../$$folder .typecheck/offramp/$$folder; done
	ln -sfn ../../proto/offramp/v1 .typecheck/offramp/v1
	ln -sfn ../../deploy/ray .typecheck/offramp/ray
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-proto .typecheck build *.egg-info .pytest_cache .mypy_cache .ruff_cache
