#!/usr/bin/env bash
# Runs what bundle.sh packed: every CUDA test, the contract suite on the CUDA engine, the C library and its torch example
# where this machine's python3 has torch, `expertd verify` of every golden checkpoint, a server under load with bit
# checks, callers that map its device memory, a small case of every kernel under compute-sanitizer where it is installed,
# the benchmarks. Exit code 1 when something failed.
# usage: run.sh [tests] [contract] [c] [verify] [serve] [lane] [sanitizer] [bench]      (no name: all); JSON of the
# benchmarks and logs of the servers go to $OUT or the folder
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here}
# The driver's own library is not packed, nor is cuBLAS, which is large: they belong to the machine.
path=$here/lib:$here/lib/system:/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}
runner=(env "LD_LIBRARY_PATH=$path")
if ! "${runner[@]}" "$here/bin/cuda_ops_test" --gtest_list_tests >/dev/null 2>&1; then
  runner=("$here/glibc/ld-linux-x86-64.so.2" --library-path "$here/glibc:$path:/usr/lib/x86_64-linux-gnu")
  echo "this machine's C library is older than the build's: using the packed one"
fi
packed() { "${runner[@]}" "$here/bin/$1" "${@:2}"; }
wants() { [[ $# -eq 1 || " ${*:2} " == *" $1 "* ]]; }
failed=0

echo "commit $(cat "$here/commit")"
date -u +%Y-%m-%d
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || echo "no nvidia-smi"

if wants tests "$@"; then
  echo "== tests"
  packed cuda_ops_test --gtest_brief=1 || failed=1
fi

if wants contract "$@"; then
  for suite in "$here"/bin/contract_*_test; do
    echo "== $(basename "$suite") on cuda:0"
    EXPERTD_TEST_DATA=$here packed "$(basename "$suite")" --gtest_filter='*cuda_0' --gtest_brief=1 || failed=1
    packed "$(basename "$suite")" --gtest_filter='*cuda_0' --gtest_list_tests 2>/dev/null | grep -q cuda_0 ||
      { echo "no test ran on the device"; failed=1; }
  done
fi

if wants c "$@"; then
  echo "== the C library on cuda:0"
  packed c_abi_test "$here/golden/olmoe" cuda:0 || failed=1
  echo "== torch through the C library"
  # Only the library's own dependencies: python3 has a C++ runtime of its own, and the machine's C library.
  EXPERTD_LIBRARY=$here/lib/libexpertd_c.so.1 EXPERTD_GOLDEN=$here/golden LD_LIBRARY_PATH=$here/lib:${LD_LIBRARY_PATH:-} \
    python3 "$here/torch/test_expertd_torch.py"
  status=$?
  [[ $status -eq 0 || $status -eq 77 ]] || failed=1
fi

if wants verify "$@"; then
  for checkpoint in "$here"/golden/*/; do
    echo "== verify $(basename "$checkpoint")"
    packed expertd verify --checkpoint "$checkpoint" --io "$checkpoint/io.safetensors" --device cuda:0 || failed=1
    packed expertd verify --checkpoint "$checkpoint" --device cuda:0 --rows 300 || failed=1
  done
fi

# Serves one layer with a real model's shapes: start_server MODEL [flags of synth]; sets server, endpoint, checkpoint.
start_server() {
  local log=$out/serve-$1.log
  checkpoint=$(mktemp -d)
  packed expertd synth --like "$@" --layers 1 --out "$checkpoint/model" >/dev/null || return 1
  # Not through a function: the process to signal is the server itself.
  "${runner[@]}" "$here/bin/expertd" serve --checkpoint "$checkpoint/model" --device cuda:0 --listen 127.0.0.1:0 \
    --metrics-address 127.0.0.1:0 --fast-lane-socket "$checkpoint/lane" --fast-lane-device-mib 64 >"$log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    grep -q '^ready' "$log" && break
    kill -0 "$server" 2>/dev/null || { cat "$log"; return 1; }
    sleep 0.1
  done
  endpoint=$(sed -n 's/^listening on //p' "$log")
  grep -a 'path=' "$log" | head -1
}
stop_server() {
  kill -TERM "$server"
  wait "$server" || { echo "the server's exit code is $?"; return 1; }
  rm -rf "$checkpoint"
}
# serve_and_bench MODEL [flags of synth]: loads of several sizes, with bit checks.
serve_and_bench() {
  local server endpoint checkpoint status=0
  start_server "$@" || return 1
  for load in "1 1" "8 16" "32 64" "16 512"; do
    echo "-- ${load% *} requests in flight, ${load#* } rows each"
    packed expertd-client bench --endpoint "$endpoint" --concurrency "${load% *}" --rows "${load#* }" --warmup-s 0.5 \
      --duration-s 2 --check || status=1
  done
  stop_server || status=1
  return $status
}
if wants serve "$@"; then
  for model in olmoe mixtral-8x7b "qwen3-30b-a3b --dtype fp8" gpt-oss-20b; do
    echo "== serve $model on cuda:0"
    serve_and_bench $model || failed=1
  done
fi

# The programs start servers and peers themselves, which the packed loader cannot do for them.
lane() {
  local server endpoint checkpoint status=0
  EXPERTD_BIN_DIR=$here/bin packed device_lane_test || status=1
  echo "-- from Python"
  start_server olmoe --experts 16 --intermediate 256 || return 1
  PYTHONPATH=$here/python python3 "$here/device_lane.py" "$endpoint" model
  [[ $? -eq 0 || $? -eq 77 ]] || status=1
  stop_server || status=1
  echo "-- latency"
  packed lane_bench --bin-dir "$here/bin" --device cuda:0 --rounds 5 || status=1
  return $status
}
if wants lane "$@"; then
  echo "== the fast lane with device memory"
  if [[ ${runner[0]} == env ]]; then
    lane || failed=1
  else
    echo "not run: it needs this machine's own C library"
  fi
fi

# One small case of every kernel and element type: the checker slows kernels down a hundredfold. In groups, so that each
# stays well under its limit and one that does not is known by name.
# Those over cuBLAS stand apart: what is found there may be its own.
groups=("ops=ActivationGpuTest.*:RoutingGpuTest.*:RowsGpuTest.*:SortGpuTest.*" "products=GemmGpuTest.*:MoeGpuTest.*"
  "backward=BackwardGpuTest.*" "engine=EngineGpuTest.*" "batched=Batched*")
others=$(printf '%s:' "${groups[@]#*=}")
groups+=("others=-$others")
sanitize() {  # TOOL GROUP FILTER
  local started=$SECONDS status
  # Errors of calls are the tests' to judge: one of them asks for more memory than there is.
  EXPERTD_GPU_TESTS=small timeout 60 "$sanitizer" --tool "$1" --report-api-errors no --target-processes all --error-exitcode 9 --print-limit 3 \
    "${runner[@]}" "$here/bin/cuda_ops_test" --gtest_brief=1 --gtest_filter="$3" >"$out/sanitizer-$1-$2.log" 2>&1
  status=$?
  echo "$1 $2: exit $status after $((SECONDS - started)) s: $(grep -aE 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/sanitizer-$1-$2.log" | tail -1)"
  [[ $status -eq 0 ]] || { tail -20 "$out/sanitizer-$1-$2.log"; return 1; }
}
if wants sanitizer "$@"; then
  echo "== compute-sanitizer"
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
  if [[ -z $sanitizer ]]; then
    echo "not installed: not run"
  else
    for tool in memcheck racecheck initcheck; do
      for group in "${groups[@]}"; do sanitize "$tool" "${group%%=*}" "${group#*=}" || failed=1; done
    done
  fi
fi

if wants bench "$@"; then
  echo "== benchmarks"
  packed cuda_ops_bench --json "$out/cuda_ops_bench.json" || failed=1
fi
exit $failed
