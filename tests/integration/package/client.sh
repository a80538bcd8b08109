#!/usr/bin/env bash
# The client library as a stranger's project sees it: installed into an empty folder, found, an example built against it and
# run against a server.
#
#   client.sh BUILD_DIR WORK_DIR CXX        run by ctest, see CMakeLists.txt
set -euo pipefail
build=$1 work=$2 cxx=$3
source=$(cd "$(dirname "$0")/../../.." && pwd)

rm -rf "$work" && mkdir -p "$work"
cmake --install "$build" --prefix "$work/prefix" --component client >/dev/null
# Whatever a public header includes must be installed too.
(cd "$work/prefix/include/expertd" && find client -name '*.h' -printf '#include "%p"\n') >"$work/every_header.cc"
[[ $(wc -l <"$work/every_header.cc") -ge 5 ]] || { echo "headers are missing:"; cat "$work/every_header.cc"; exit 1; }
cp "$source/client/cpp/examples/decode_step_example.cc" "$work/"
cat >"$work/CMakeLists.txt" <<'PROJECT'
cmake_minimum_required(VERSION 3.25)
project(stranger LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
find_package(expertd REQUIRED COMPONENTS client)
add_executable(stranger decode_step_example.cc every_header.cc)
target_link_libraries(stranger PRIVATE expertd::client)
PROJECT
cmake -S "$work" -B "$work/build" -G Ninja -D CMAKE_PREFIX_PATH="$work/prefix" -D CMAKE_CXX_COMPILER="$cxx" >"$work/log" 2>&1 &&
  cmake --build "$work/build" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }

"$build/bin/expertd" serve --checkpoint "$source/tests/data/golden/olmoe" --listen 127.0.0.1:0 --metrics-address 127.0.0.1:0 \
  >"$work/server.out" 2>"$work/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do grep -q '^ready' "$work/server.out" && break; sleep 0.1; done
"$work/build/stranger" "$(sed -n 's/^listening on //p' "$work/server.out")" | tee "$work/said"
grep -q '^3 sequences of 2 rows went through ' "$work/said"
