# make demo   a real server and a real device on the shipped model; needs no torch
# make test   lint, types and all tests
# make check  lint, types and the tests that start no program and need no torch: for the edit loop
# make check-deploy   every file in deploy/ by its own tool (deploy/install-checkers.sh has Debian's)
# make check-containers  both images built and both Compose files run, on a Docker engine of its own; as root
# make check-arm64    of these the device image for arm64, run under QEMU
# make paper  the paper's tables and figures that follow from the networks alone; RUNS=DIR for all of them
# make test-ray       the tests of Ray Serve, which needs 0.7 GB of its own
# make test-openvino  the tests of OpenVINO's execution provider, whose wheel takes the place of ONNX Runtime's
# make dist           source archive and wheel in dist/, checked
# make sbom           what a device and a server install, in dist/ (CycloneDX)
# make docs           the documentation in build/site
# make docs-tables    tables of flags, metrics, errors and recipe fields in docs/reference, from the code
# make docs-version VERSION=0.1   the same on the branch gh-pages, beside the other versions
# make check-release  the three above, and the definitions for a forge; CI runs it
# make proto  write the stubs in proto/ again
PYTHON ?= $(shell command -v python3.11 || command -v python3)

.PHONY: demo test check paper check-deploy check-containers check-arm64 test-ray test-openvino dist sbom docs docs-tables docs-version check-release lint proto proto-check clean

demo: .venv-demo/ready
	.venv-demo/bin/offramp demo

test: lint proto-check
	.venv/bin/pytest

paper: .venv/ready
	.venv/bin/python -m research.paper $(if $(RUNS),all --runs $(RUNS) --out $(RUNS)/report,table2 fig1 fig5)

check: lint
	.venv/bin/pytest -q -m "not process and not torch and not root"

check-deploy: .venv/ready
	.venv/bin/python deploy/check.py

# Some minutes, and root: not in CI.
check-containers: .venv/ready
	.venv/bin/python deploy/check_containers.py

check-arm64: .venv/ready
	.venv/bin/python deploy/check_containers.py --only arm64

test-ray: .venv-ray/ready
	.venv-ray/bin/pytest tests/ray

test-openvino: .venv-openvino/ready
	.venv-openvino/bin/pytest tests/openvino

dist: .venv-release/ready
	rm -rf dist/*.whl dist/*.tar.gz
	.venv-release/bin/python -m build --outdir dist .
	.venv-release/bin/twine check --strict dist/*.whl dist/*.tar.gz
	.venv-release/bin/python .ci/check_dist.py dist

sbom: .venv-release/ready .venv-demo/ready
	mkdir -p dist
	.venv-release/bin/cyclonedx-py environment .venv-demo/bin/python --pyproject pyproject.toml \
	  --output-reproducible --output-file dist/offramp.cdx.json

docs: .venv-release/ready
	NO_MKDOCS_2_WARNING=1 .venv-release/bin/mkdocs build --strict --quiet

docs-tables: .venv/ready
	.venv/bin/python .ci/docs_tables.py

docs-version: .venv-release/ready
	.venv-release/bin/mike deploy --update-aliases $(VERSION) latest

check-release: dist sbom docs
	.venv-release/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv-release/bin/cibuildwheel --print-build-identifiers --platform linux

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy offramp research tests

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
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[device,server,sign,mqtt,registry,otel,train,split,sound,bench,top,heic,dev]'
	touch $@

.venv-release/ready: pyproject.toml
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --quiet --disable-pip-version-check '.[docs,release]'
	touch $@

.venv-ray/ready: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check -e '.[device,server,ray,dev]'
	touch $@

# Both wheels are the folder onnxruntime, so the plain one has to go before the other comes.
.venv-openvino/ready: pyproject.toml
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/pip install --quiet --disable-pip-version-check -e '.[device,server,dev]'
	.venv-openvino/bin/pip uninstall --quiet --disable-pip-version-check --yes onnxruntime
	.venv-openvino/bin/pip install --quiet --disable-pip-version-check 'onnxruntime-openvino>=1.24,<2'
	touch $@

# A release of the compiler whose stubs run with every protobuf that pyproject.toml allows.
.venv-proto/ready:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.75.1
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-proto .venv-release .venv-ray .venv-openvino build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
