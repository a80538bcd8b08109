#!/usr/bin/env bash
# One wheel against the grpcio and protobuf versions people have: oldest to newest, four protobuf majors. Its own command, because
# it downloads each of them; writes the table that client/python/README.md shows.
#
#   tests/python/matrix.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
pairs=("1.60.2 4.25.8" "1.62.3 5.29.5" "1.71.2 6.33.0" "1.76.0 6.33.0" "1.85.1 7.36.2")
work=build/python/matrix
[[ -d build/python/venv ]] || tests/python/run.sh --collect-only >/dev/null
build/python/venv/bin/python -m build -q --wheel --outdir "$work/dist" client/python

failed=0
for pair in "${pairs[@]}"; do
  read -r grpcio protobuf <<<"$pair"
  environment=$work/grpcio-$grpcio-protobuf-$protobuf
  [[ -d $environment ]] || python3 -m venv "$environment"
  "$environment/bin/pip" install -q --disable-pip-version-check "grpcio==$grpcio" "protobuf==$protobuf" numpy pytest cryptography ml_dtypes
  "$environment/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$work"/dist/*.whl
  result=$(cd tests/python && "../../$environment/bin/python" -m pytest --ignore test_transformers.py 2>&1 | tail -1) || failed=1
  echo "grpcio $grpcio, protobuf $protobuf, python $("$environment/bin/python" -c 'import platform; print(platform.python_version())'): $result"
  [[ $result == *passed* && $result != *failed* && $result != *error* ]] || failed=1
done
exit "$failed"
