#!/usr/bin/env bash
# transformers 5 with remote experts: its own command, because torch is large (5.6 GB with the CUDA wheels that PyPI ties to it).
# The smallest way is PyTorch's own CPU index, where it can be reached: TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
#   tests/python/transformers.sh [PYTEST_ARGS...]
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=${EXPERTD_TORCH_VENV:-build/python/torch}
pip=("$environment/bin/pip" install -q --disable-pip-version-check)

if [[ ! -x $environment/bin/python ]]; then
  python3 -m venv "$environment"
  "${pip[@]}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
fi
"${pip[@]}" "transformers>=5,<6" safetensors numpy pytest build setuptools grpcio==1.85.1 protobuf==7.36.2
rm -rf build/python/dist
"$environment/bin/python" -m build -q --wheel --outdir build/python/dist client/python
"${pip[@]}" --force-reinstall --no-deps build/python/dist/*.whl
environment=$(cd "$environment" && pwd)
cd tests/python
"$environment/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
exec "$environment/bin/python" -m pytest test_transformers.py -s "$@"
