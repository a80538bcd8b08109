#!/usr/bin/env bash
# The CI set on a bare Debian 12 machine: installs, builds, tests under release and sanitizers, and prints totals.
#
#   tests/run.sh            everything that CI runs (meant for 35 minutes on 2 cores; what it takes: CONTRIBUTING.md)
#   tests/run.sh --long [ARGUMENTS OF tests/long.sh]      after that, what CI leaves out: repeated stress, fuzzing, the soak, the
#                           image; writes tests/LONG.md
set -euo pipefail
cd "$(dirname "$0")/.."

long=0
case "${1:-}" in
  "") ;;
  --long) long=1; shift ;;
  *) echo "usage: tests/run.sh [--long [ARGUMENTS OF tests/long.sh]]" >&2; exit 2 ;;
esac
started=$SECONDS
step() { printf '\n== [%3d s] %s\n' $((SECONDS - started)) "$*"; }

# run_preset NAME CTEST_ARGS...: builds the preset and runs its tests, keeping the reports for the totals.
failed=()
reports=()
run_preset() {
  local preset="$1" results="$PWD/build/$1/test-reports"
  shift
  rm -rf "$results" && mkdir -p "$results"
  reports+=("$preset=$results")
  GTEST_OUTPUT="xml:$results/" ctest --test-dir "build/$preset" --output-on-failure -j 2 --no-tests=error "$@" || failed+=("$preset tests")
}
build_preset() {
  local preset="$1"
  shift
  cmake --preset "$preset" >"build/$preset.configure.log" 2>&1 || { cat "build/$preset.configure.log"; exit 1; }
  cmake --build --preset "$preset" "$@" | grep -vE '^\[[0-9]+/[0-9]+\]' || [[ ${PIPESTATUS[0]} == 0 ]]
}

step "packages"
deploy/install-packages.sh
mkdir -p build
[[ -d /usr/local/cuda/bin && ":$PATH:" != *:/usr/local/cuda/bin:* ]] && export PATH="$PATH:/usr/local/cuda/bin"

step "format"
git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror || failed+=("clang-format")

step "release: build"
build_preset release
step "release: architecture"
python3 tests/checks/architecture.py . build/release || failed+=("architecture")
step "release: tests"
run_preset release -LE long

step "asan-ubsan: build (clang: thread-safety analysis and fuzzers too)"
build_preset asan-ubsan
step "asan-ubsan: tests"
# gRPC's own globals live to the end of the process; leaks of ours are still found. The suppressions name libraries only.
ASAN_OPTIONS=detect_stack_use_after_return=1 LSAN_OPTIONS="suppressions=$PWD/tests/checks/lsan.supp" \
  run_preset asan-ubsan -LE 'long|no-sanitizer'

step "tsan: build (our own threads, without gRPC)"
build_preset tsan --target tsan_tests
step "tsan: tests"
TSAN_OPTIONS="halt_on_error=1 suppressions=$PWD/tests/checks/tsan.supp" run_preset tsan -L tsan -LE long
step "tsan: a seeded race must be caught"
if build/tsan/bin/seeded_race >/dev/null 2>&1; then
  echo "the seeded race was not reported"; failed+=("seeded race")
else
  echo "caught"
fi

step "deployment kit: chart, rules, dashboard, units"
reports+=("deployment kit=$PWD/build/deploy-test/reports")
rm -rf build/deploy-test/reports
tests/deploy/run.sh -q --junitxml="$PWD/build/deploy-test/reports/pytest.xml" || failed+=("deployment kit")

step "python package, tritonclient"
reports+=("python=$PWD/build/python/reports")
rm -rf build/python/reports
tests/python/run.sh --junitxml="$PWD/build/python/reports/pytest.xml" || failed+=("python package")

step "quickstart"
deploy/quickstart.sh --seconds 3 || failed+=("quickstart")

if ((long)); then
  step "long: repeated stress, fuzzing, soak, image"
  tests/long.sh "$@" || failed+=("long")
fi

step "totals"
python3 tests/checks/totals.py "${reports[@]}" || failed+=("a test")
((long)) || echo "left out (tests/run.sh --long): repeated stress, fuzzing, soak, the image in a bare Debian, the load tester's page in Chromium; left out (needs a GPU): tests/gpu"
if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
