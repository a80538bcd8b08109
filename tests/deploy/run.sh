#!/usr/bin/env bash
# The deployment kit without a cluster and without Docker: the chart rendered by Helm's own engine and held against Kubernetes'
# schemas, rules by promtool, every query of the dashboard against a server that a real Prometheus scrapes, units, images'
# settings and documents. Needs build/release/bin (or EXPERTD_BIN), python3 with venv, PyPI and Debian's packages on the first run.
#
#   tests/deploy/run.sh [PYTEST_ARGS...]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/deploy/debian_root.sh
install_missing systemd-analyze=systemd
mkdir -p build/deploy-test
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then
  # Unpacked and not installed: the package would start a server for the whole machine.
  [[ -x build/deploy-test/prometheus/usr/bin/promtool ]] || (
    cd build/deploy-test && rm -rf prometheus prometheus_*.deb && { apt-get update -qq || true; } && apt-get download -qq prometheus
    dpkg-deb -x prometheus_*.deb prometheus
  )
  PATH="$PATH:$PWD/build/deploy-test/prometheus/usr/bin"
fi
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
