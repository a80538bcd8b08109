#!/usr/bin/env bash
# From a bare Debian 12 machine to served rows: installs what is missing, builds release, writes one OLMoE-shaped layer of random
# weights, serves it on loopback, load-tests it with bit checks, shows where the time went, and stops cleanly.
#
#   deploy/quickstart.sh [--seconds N] [--device cpu|cuda:0]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=10 device=cpu
while (($#)); do
  case "$1" in
    --seconds) seconds="$2"; shift 2 ;;
    --device) device="$2"; shift 2 ;;
    *) echo "usage: deploy/quickstart.sh [--seconds N] [--device cpu|cuda:0]" >&2; exit 2 ;;
  esac
done
step() { printf '\n== %s\n' "$*"; }

step "1/5 packages"
deploy/install-packages.sh

step "2/5 build (build/release)"
[[ -d /usr/local/cuda/bin && ":$PATH:" != *:/usr/local/cuda/bin:* ]] && export PATH="$PATH:/usr/local/cuda/bin"
cmake --preset release >build-quickstart.log 2>&1 || { cat build-quickstart.log; exit 1; }
mv build-quickstart.log build/release/configure.log
cmake --build --preset release --target expertd expertd-client
bin=build/release/bin

step "3/5 a checkpoint with OLMoE's shapes and random weights (build/quickstart/olmoe)"
checkpoint=build/quickstart/olmoe
if [[ ! -f $checkpoint/.complete ]]; then
  rm -rf "$checkpoint" && mkdir -p build/quickstart
  "$bin/expertd" synth --like olmoe --layers 1 --out "$checkpoint"
  touch "$checkpoint/.complete"
fi
"$bin/expertd" inspect "$checkpoint"

step "4/5 serve and load-test"
log=build/quickstart/server.log out=build/quickstart/server.out
"$bin/expertd" serve --checkpoint "$checkpoint" --device "$device" --listen 127.0.0.1:0 --metrics-address 127.0.0.1:0 >"$out" 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 600); do
  grep -q '^ready' "$out" && break
  kill -0 "$server" 2>/dev/null || { echo "the server did not start:" >&2; cat "$log" >&2; exit 1; }
  sleep 0.1
done
grep -q '^ready' "$out" || { echo "the server was not ready after 60 s:" >&2; cat "$log" >&2; exit 1; }
endpoint=$(sed -n 's/^listening on //p' "$out")
metrics=$(sed -n 's/^metrics on //p' "$out")
"$bin/expertd-client" status --endpoint "$endpoint"
"$bin/expertd-client" bench --endpoint "$endpoint" --concurrency 4 --rows 16 --mode stream --warmup-s 1 --duration-s "$seconds" --check

step "5/5 metrics and a clean stop"
echo "metrics: http://$metrics/metrics, for example:"
curl -s "http://$metrics/metrics" | grep -E '^expertd_(stage_seconds_(sum|count)|batch_rows_(sum|count))' || true
trap - EXIT
kill -TERM "$server"
wait "$server" && echo "server stopped cleanly (exit 0)"
