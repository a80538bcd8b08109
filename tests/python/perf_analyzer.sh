#!/usr/bin/env bash
# Triton's perf_analyzer, unmodified, against `expertd serve`: unary, streamed, and with rows in shared memory. Its own command: it
# downloads 14 MB of tritonclient (2.48, whose wheel carries the program), 3 MB of CUDA runtime that it links, and libb64 from
# Debian, and measures. Installs nothing. Uses build/release/bin (or EXPERTD_BIN).
#
#   tests/python/perf_analyzer.sh [PERF_ANALYZER_ARGS...]
set -euo pipefail
cd "$(dirname "$0")/../.."
tool=$PWD/build/python/perf_analyzer
if [[ ! -x $tool/perf_analyzer ]]; then
  rm -rf "$tool" && mkdir -p "$tool/download"
  (cd "$tool/download" && python3 -m pip download -q --disable-pip-version-check --no-deps tritonclient==2.48.0 nvidia-cuda-runtime-cu12==12.9.79 &&
    apt-get -qq download libb64-0d && dpkg -x libb64-0d_*.deb "$tool" &&
    for wheel in *.whl; do python3 -m zipfile -e "$wheel" "$tool"; done)
  mv "$tool/tritonclient-2.48.0.data/data/bin/perf_analyzer" "$tool/" && chmod +x "$tool/perf_analyzer"
fi
export LD_LIBRARY_PATH="$tool/usr/lib/x86_64-linux-gnu:$tool/nvidia/cuda_runtime/lib"

out=$(mktemp)
"${EXPERTD_BIN:-build/release/bin}/expertd" serve --checkpoint mixtral=tests/data/golden/mixtral --listen 127.0.0.1:0 \
  --metrics-address "" --drain-grace-ms 0 --kserve-shared-memory >"$out" 2>/dev/null &
server=$!
trap 'kill $server; wait $server; rm -f "$out"' EXIT
for _ in $(seq 100); do grep -q '^ready' "$out" && break || sleep 0.1; done
address=$(sed -n 's/^listening on //p' "$out")

for mode in "" "--streaming --async" "--shared-memory system --output-shared-memory-size 4096"; do
  echo "== 16 rows a request, two at a time ${mode:+($mode)}"
  # shellcheck disable=SC2086
  "$tool/perf_analyzer" -m mixtral/0 -i grpc -u "$address" -b 16 --concurrency-range 2 --measurement-mode count_windows \
    --measurement-request-count 2000 --stability-percentage 80 $mode "$@" | sed -n '/Client:/,/Avg request latency/p'
done
