#!/usr/bin/env bash
# Installs what deploy/apt-packages.txt names and the machine lacks. Does nothing, and needs no root, when nothing is missing.
set -euo pipefail
list="$(dirname "$0")/apt-packages.txt"
missing=()
for package in $(grep -v '^#' "$list"); do
  [[ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
echo "installing: ${missing[*]}"
sudo=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || { echo "not root and no sudo: run  apt-get install ${missing[*]}  first" >&2; exit 1; }
  sudo=(sudo)
fi
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
