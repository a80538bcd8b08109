#!/usr/bin/env bash
# One wheel against the grpcio and protobuf versions people have: oldest to newest, four protobuf majors; and with one of these pairs
# under other interpreters. Its own command, because it downloads each of them; prints the table that client/python/README.md shows.
#
#   [PYTHONS="python3.12 /path/of/another/python"] tests/python/matrix.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
pairs=("1.60.2 4.25.8" "1.62.3 5.29.5" "1.71.2 6.33.0" "1.76.0 6.33.0" "1.85.1 7.36.2")
work=build/python/matrix
[[ -d build/python/venv ]] || tests/python/run.sh --collect-only >/dev/null
build/python/venv/bin/python -m build -q --wheel --outdir "$work/dist" client/python

failed=0
# try PYTHON GRPCIO PROTOBUF
try() {
  local version environment result
  version=$("$1" -c 'import platform; print(platform.python_version())')
  environment=$work/python-$version-grpcio-$2-protobuf-$3
  [[ -d $environment ]] || "$1" -m venv "$environment"
  "$environment/bin/pip" install -q --disable-pip-version-check "grpcio==$2" "protobuf==$3" numpy pytest cryptography ml_dtypes
  "$environment/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$work"/dist/*.whl
  result=$(cd tests/python && "../../$environment/bin/python" -m pytest --ignore test_transformers.py 2>&1 | tail -1) || failed=1
  echo "grpcio $2, protobuf $3, python $version: $result"
  [[ $result == *passed* && $result != *failed* && $result != *error* ]] || failed=1
}
for pair in "${pairs[@]}"; do
  read -r grpcio protobuf <<<"$pair"
  try python3 "$grpcio" "$protobuf"
done
for python in ${PYTHONS:-}; do try "$python" 1.71.2 6.33.0; done
exit "$failed"
