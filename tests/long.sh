#!/usr/bin/env bash
# What CI leaves out: stress tests repeated, fuzzing, a soak of a served layer under a changing load whose memory and files must stay
# flat, the image, and the load tester's page in a browser. Expects the release, asan-ubsan and tsan builds of tests/run.sh; writes tests/LONG.md, to be committed with the
# commit it ran on.
#
#   tests/long.sh [--soak-seconds N] [--fuzz-seconds N] [PART ...]      default 600 and 120; all parts:
#   stress engine integration drain fuzz soak image page
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '6,7s/^# *//p' "$0" >&2; exit 2; }

all_parts=(stress engine integration drain fuzz soak image page)
soak_seconds=600 fuzz_seconds=120 parts=()
while (($#)); do
  case "$1" in
    --soak-seconds) soak_seconds="${2:-}"; shift 2 || usage ;;
    --fuzz-seconds) fuzz_seconds="${2:-}"; shift 2 || usage ;;
    *) [[ " ${all_parts[*]} " == *" $1 "* ]] || usage; parts+=("$1"); shift ;;
  esac
done
((${#parts[@]})) || parts=("${all_parts[@]}")

report=build/LONG.md
bin=build/release/bin
export TSAN_OPTIONS="halt_on_error=1 suppressions=$PWD/tests/checks/tsan.supp"
mkdir -p build/long
say() { echo "- $*" | tee -a "$report"; }
# logged NAME COMMAND...: its output in build/long/NAME.log; the end of it is shown when the command fails, and nothing goes on.
logged() {
  local log="build/long/$1.log"
  shift
  "$@" >"$log" 2>&1 || { tail -30 "$log"; exit 1; }
}
# repeated PRESET COUNT CTEST_ARGS...
repeated() {
  logged "$1-$part" ctest --test-dir "build/$1" --repeat "until-fail:$2" --no-tests=error --output-on-failure "${@:3}"
}

stress() {
  repeated tsan 20 -L tsan -R stress
  say "scheduler stress under ThreadSanitizer, 20 times: passed"
}
engine() {
  repeated tsan 3 -L tsan -R '^(cpu|contract)_'
  say "CPU engine and contract suites under ThreadSanitizer, 3 times: passed"
}
integration() {
  repeated release 10 -L integration
  say "integration tests with real processes, 10 times: passed"
}
drain() {
  EXPERTD_DRAIN_ROUNDS=100 logged drain "$bin/integration_test" --gtest_filter=DrainTest.AgainAndAgain
  say "SIGTERM under load, 100 times: what was answered is what was run"
}
fuzz() {
  local target
  for target in forward_request checkpoint; do
    mkdir -p "build/long/corpus/$target"
    logged "fuzz-$target" "build/asan-ubsan/bin/${target}_fuzz" "-max_total_time=$fuzz_seconds" -print_final_stats=1 \
      "-artifact_prefix=build/long/$target-" "build/long/corpus/$target" "tests/fuzz/corpus/$target"
    say "fuzzing ${target}s for $fuzz_seconds s: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/long/fuzz-$target.log") inputs, nothing found"
  done
}

# What must not grow: MiB resident, and open files.
usage_of() { echo "$(awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$1/status") $(find "/proc/$1/fd" -mindepth 1 | wc -l)"; }

soak() {
  local checkpoint=build/long/checkpoint endpoint load rounds=0 memory files half_memory half_files
  [[ -f $checkpoint/config.json ]] || logged synth "$bin/expertd" synth --like olmoe --layers 1 --experts 16 --out "$checkpoint"
  "$bin/expertd" serve --checkpoint "$checkpoint" --listen 127.0.0.1:0 --metrics-address 127.0.0.1:0 >build/long/server.out 2>build/long/server.log &
  server=$!  # not local: the trap needs it
  trap 'kill "$server" 2>/dev/null || true' EXIT
  for _ in $(seq 600); do grep -q '^ready' build/long/server.out && break; sleep 0.1; done
  endpoint=$(sed -n 's/^listening on //p' build/long/server.out)
  # The first half is for buffers to reach their size: the batch that needs most of them (two of 300 rows) may come late.
  local half=$((SECONDS + soak_seconds / 2)) end=$((SECONDS + soak_seconds)) half_round=0
  while ((SECONDS < end || half_round == 0 || rounds == half_round)); do
    for load in "--rows 1 --concurrency 8 --mode stream" "--rows 64 --concurrency 4 --mode unary" "--rows 300 --concurrency 2 --mode stream --pre-routed"; do
      # shellcheck disable=SC2086
      logged bench "$bin/expertd-client" bench --endpoint "$endpoint" $load --warmup-s 0 --duration-s 5 --check
    done
    rounds=$((rounds + 1))
    read -r memory files < <(usage_of "$server")
    if ((half_round == 0 && rounds >= 2 && SECONDS >= half)); then
      half_round=$rounds half_memory=$memory half_files=$files
    fi
    echo "  round $rounds: $memory MiB resident, $files open files"
  done
  kill -TERM "$server"
  wait "$server" || { echo "the server's drain failed with exit code $?"; exit 1; }
  trap - EXIT
  say "soak, $soak_seconds s, $rounds rounds of new clients (1, 64 and 300 rows, unary and stream, bits checked): $half_memory MiB resident and $half_files open files after half of it (round $half_round), $memory and $files at the end"
  ((memory <= half_memory + half_memory / 20)) || { echo "memory grew from $half_memory to $memory MiB"; exit 1; }
  ((files <= half_files + 8)) || { echo "open files grew from $half_files to $files"; exit 1; }
}

image() {
  ((EUID == 0)) || { say "image: left out, needs root"; return; }
  logged image tests/deploy/image.sh
  say "image, the Dockerfile's steps in a bare Debian 12: $(grep -o 'file system: .*' build/long/image.log), served, verified and drained in it: passed"
}

page() {
  logged page tests/browser/report_page.sh
  say "the load tester's page in headless Chromium: $(tail -1 build/long/page.log)"
}

{
  echo "# Long runs"
  echo
  echo "Written by \`tests/long.sh\` (\`tests/run.sh --long\`) on $(date -u +%F), commit $(git rev-parse --short HEAD), $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), load average $(cut -d' ' -f1 /proc/loadavg) at the start."
  echo
} >"$report"
for part in "${parts[@]}"; do
  echo "$part ..."
  "$part"
done
for part in "${all_parts[@]}"; do
  [[ " ${parts[*]} " == *" $part "* ]] || say "$part: not run this time"
done
cp "$report" tests/LONG.md
