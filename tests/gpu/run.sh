#!/usr/bin/env bash
# Runs what bundle.sh packed: every CUDA test, a subset under compute-sanitizer where it is installed, the benchmarks.
# Exit code 1 when a test failed.
# usage: run.sh [tests] [sanitizer] [bench]      (no name: all); JSON of the benchmarks goes to $OUT or the folder
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here}
# The driver's own library is not packed, nor is cuBLAS, which is large: they belong to the machine.
path=$here/lib:/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}
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

# One small case of every kernel and element type: the checker slows kernels down a hundredfold.
if wants sanitizer "$@"; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
  if [[ -z $sanitizer ]]; then
    echo "== compute-sanitizer is not installed: not run"
  else
    for tool in memcheck racecheck initcheck; do
      echo "== compute-sanitizer $tool"
      EXPERTD_GPU_TESTS=small timeout 150 "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 9 \
        --print-limit 3 "${runner[@]}" "$here/bin/cuda_ops_test" --gtest_brief=1 2>&1 | tail -15
      [[ ${PIPESTATUS[0]} -eq 0 ]] || failed=1
    done
  fi
fi

if wants bench "$@"; then
  echo "== benchmarks"
  packed cuda_ops_bench --json "$out/cuda_ops_bench.json" || failed=1
fi
exit $failed
