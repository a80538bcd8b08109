#!/usr/bin/env bash
# The deployment kit without a cluster and without Docker: the chart rendered by Helm's own engine and held against Kubernetes'
# schemas, rules by promtool, every query of the dashboard against a server that a real Prometheus scrapes, units, images'
# settings and documents. Needs build/release/bin (or EXPERTD_BIN), python3 with venv, PyPI and Debian's packages on the first run.
#
#   tests/deploy/run.sh [PYTEST_ARGS...]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/deploy/debian_root.sh
install_missing prometheus=prometheus promtool=prometheus systemd-analyze=systemd
python3 -c 'import ensurepip' 2>/dev/null || apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
environment=build/deploy-test/venv
requirements=tests/deploy/requirements.txt
if ! cmp -s "$requirements" "$environment/installed.txt"; then
  rm -rf "$environment"
  python3 -m venv "$environment"
  "$environment/bin/pip" install -q --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$environment/installed.txt"
fi
PATH="$PWD/$environment/bin:$PATH" exec "$environment/bin/python" -m pytest -p no:cacheprovider tests/deploy "$@"
