#!/usr/bin/env bash
# The CUDA compiler and the headers of its runtime, from NVIDIA's repository for Debian 12: for the cuda image only. The runtime
# is linked statically; the driver comes from the host.
set -euo pipefail
version="${CUDA_VERSION:-13-0}"
curl -fsSL -o /tmp/keyring.deb \
  https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/cuda-keyring_1.1-1_all.deb
dpkg -i /tmp/keyring.deb >/dev/null
rm /tmp/keyring.deb
apt-get update -qq
apt-get install -y -qq --no-install-recommends "cuda-nvcc-$version" "cuda-cudart-dev-$version" "cuda-cccl-$version" >/dev/null
/usr/local/cuda/bin/nvcc --version
