#!/usr/bin/env bash
# What CI leaves out: stress tests repeated, a soak of a served layer under a changing load whose memory must stay flat, and the image.
# Expects the release and tsan builds of tests/run.sh; writes tests/LONG.md, to be committed with the commit it ran on.
#
#   tests/long.sh [--soak-seconds N]        default 600
set -euo pipefail
cd "$(dirname "$0")/.."
soak_seconds=600
[[ "${1:-}" == --soak-seconds ]] && soak_seconds="$2"
report=build/LONG.md
bin=build/release/bin

{
  echo "# Long runs"
  echo
  echo "Written by \`tests/run.sh --long\` on $(date -u +%F), commit $(git rev-parse --short HEAD), $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)."
} >"$report"

echo "stress: scheduler and CPU engine threads under ThreadSanitizer, 20 times"
ctest --test-dir build/tsan -L tsan -R stress --repeat until-fail:20 --output-on-failure >build/long-stress.log || { tail -30 build/long-stress.log; exit 1; }
echo "- ThreadSanitizer stress, 20 repetitions: passed" >>"$report"

echo "integration: 10 repetitions of the tests with real processes"
ctest --test-dir build/release -L integration --repeat until-fail:10 --output-on-failure >build/long-integration.log || { tail -30 build/long-integration.log; exit 1; }
echo "- integration tests, 10 repetitions: passed" >>"$report"

echo "soak: $soak_seconds s"
checkpoint=build/long/checkpoint
[[ -f $checkpoint/config.json ]] || { mkdir -p build/long; "$bin/expertd" synth --like olmoe --layers 1 --experts 16 --out "$checkpoint" >/dev/null; }
"$bin/expertd" serve --checkpoint "$checkpoint" --listen 127.0.0.1:0 --metrics-address 127.0.0.1:0 >build/long/server.out 2>build/long/server.log &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do grep -q '^ready' build/long/server.out && break; sleep 0.1; done
endpoint=$(sed -n 's/^listening on //p' build/long/server.out)
rss() { awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$server/status"; }
end=$((SECONDS + soak_seconds)) rounds=0 first=0
while ((SECONDS < end)); do
  for load in "--rows 1 --concurrency 8 --mode stream" "--rows 64 --concurrency 4 --mode unary" "--rows 300 --concurrency 2 --mode stream --pre-routed"; do
    # shellcheck disable=SC2086
    "$bin/expertd-client" bench --endpoint "$endpoint" $load --warmup-s 0 --duration-s 5 --check >build/long/bench.log 2>&1 || { tail build/long/bench.log; exit 1; }
  done
  rounds=$((rounds + 1))
  ((rounds != 2)) || first=$(rss)
  echo "  round $rounds: $(rss) MiB resident"
done
last=$(rss)
kill -TERM "$server" && wait "$server"
trap - EXIT
echo "- soak, $soak_seconds s, $rounds rounds of new clients (1, 64 and 300 rows, unary and stream, bits checked): ${first} MiB resident after round 2, ${last} MiB at the end" >>"$report"
((last <= first + first / 20 + 16)) || { echo "memory grew from $first to $last MiB"; exit 1; }
if ((EUID == 0)); then
  echo "image: the Dockerfile's steps in a bare Debian 12, and the server in the result"
  tests/deploy/image.sh >build/long-image.log 2>&1 || { tail -30 build/long-image.log; exit 1; }
  echo "- image: $(grep -o 'file system: .*' build/long-image.log), served, verified and drained in it: passed" >>"$report"
else
  echo "- image: left out, needs root" >>"$report"
fi
cp "$report" tests/LONG.md
cat tests/LONG.md
