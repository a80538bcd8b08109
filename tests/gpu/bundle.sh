#!/usr/bin/env bash
# Builds the CUDA tests and benchmarks, the engine's contract tests, the server and its client and packs them, with every shared library that they need and the loader, into one
# folder that runs on a machine with only an NVIDIA driver: build/bundle/run.sh there runs everything.
# usage: tests/gpu/bundle.sh [build folder]      (default: build/gpu)
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/gpu}
bundle=build/bundle
programs=(cuda_ops_test cuda_ops_bench expertd expertd-client c_abi_test device_lane_test device_lane_peer lane_bench serving_bench wire_echo)
for suite in tests/contract/*_test.cc; do programs+=("contract_$(basename "$suite" .cc)"); done

# The kernels are most of it: one copy for all programs.
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DEXPERTD_WERROR=ON -DEXPERTD_CUDA=ON -DEXPERTD_CUDA_SHARED=ON >/dev/null
ninja -C "$build" "${programs[@]}" libexpertd_c.so

rm -rf "$bundle"
mkdir -p "$bundle"/{bin,lib/system,glibc,torch}
for program in "${programs[@]}"; do strip -o "$bundle/bin/$program" "$build/bin/$program"; done

# lib: the C library and what it alone needs, for a Python that brings a C++ runtime of its own; lib/system: all the rest.
needed() { ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u | grep -vE '/lib(c|m|dl|rt|pthread)\.so'; }
pack() { while read -r library; do strip --strip-unneeded -o "$1/$(basename "$library")" "$library"; done; }
c_library=$build/lib/libexpertd_c.so.1
{ echo "$c_library"; needed "$c_library" | grep -vE '/lib(stdc\+\+|gcc_s)\.so'; } | pack "$bundle/lib"
for program in "${programs[@]}"; do needed "$build/bin/$program"; done | sort -u | while read -r library; do
  [[ -e $bundle/lib/$(basename "$library") ]] || echo "$library"
done | pack "$bundle/lib/system"
# The C library stands apart: run.sh uses it only where the machine's own is older, and then all of it.
libc=$(dirname "$(ldd "$build/bin/${programs[0]}" | awk '$1 == "libc.so.6" {print $3}')")
cp -L "$libc"/{libc.so.6,libm.so.6,libdl.so.2,librt.so.1,libpthread.so.0,ld-linux-x86-64.so.2} "$bundle/glibc/"
cp tests/gpu/run.sh "$bundle/run.sh"
cp kernels/c/examples/torch/*.py "$bundle/torch/"
cp -r tests/data/golden "$bundle/golden"
# The Python client, where tests/python/run.sh has built it since it changed.
wheel=$(ls build/python/dist/expertd-*.whl 2>/dev/null || true)
if [[ -n $wheel && -z $(find client/python/src client/python/setup.py proto -type f -newer "$wheel" -not -path '*/*.egg-info/*') ]]; then
  python3 -m zipfile -e "$wheel" "$bundle/python"
else
  echo "without the Python client: run tests/python/run.sh first"
fi
cp tests/gpu/device_lane.py "$bundle/"
git log -1 --format='%h %s' >"$bundle/commit"
du -sh "$bundle"
