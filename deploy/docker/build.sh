#!/usr/bin/env bash
# Builds the server for an image, stripped, in build/image/bin/expertd. The packages of deploy/apt-packages.txt are installed.
#
#   deploy/docker/build.sh ON|OFF      with or without the CUDA engine (ON needs nvcc)
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/local/cuda/bin"
cmake -S . -B build/image -G Ninja -DCMAKE_BUILD_TYPE=Release -DEXPERTD_BUILD_TESTS=OFF -DEXPERTD_CUDA="$1" >/dev/null
cmake --build build/image --target expertd
strip build/image/bin/expertd
