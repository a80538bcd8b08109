#!/usr/bin/env bash
# Builds the Python package, installs it into a virtual environment with pinned versions, type-checks it and runs its tests, and
# those of the open inference protocol with tritonclient, against build/release/bin (or EXPERTD_BIN). Part of tests/run.sh. Needs
# python3-venv, and PyPI on the first run.
#
#   tests/python/run.sh [PYTEST_ARGS...]
set -euo pipefail
python3 -c "import ensurepip" 2>/dev/null || { echo "python3-venv is missing: deploy/install-packages.sh" >&2; exit 1; }
cd "$(dirname "$0")/../.."
environment=build/python/venv
requirements=tests/python/requirements.txt

if ! cmp -s "$requirements" "$environment/installed.txt"; then
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/pip" install -q --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$environment/installed.txt"
fi
rm -rf build/python/dist
"$environment/bin/python" -m build -q --wheel --outdir build/python/dist client/python
"$environment/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps build/python/dist/*.whl
"$environment/bin/mypy" --config-file client/python/pyproject.toml
"$environment/bin/vermin" --quiet --no-tips -t=3.9- client/python/src client/python/setup.py  # no syntax or module newer than 3.9
cd tests/python
exec "../../$environment/bin/python" -m pytest "$@"
