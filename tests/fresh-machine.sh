#!/usr/bin/env bash
# Both commands of README.md on a bare Debian 12: a fresh clone in a root that debootstrap has just made, where nothing is
# installed that deploy/apt-packages.txt does not name. Needs root. On 2 free cores about an hour; the machine's own CUDA toolkit
# is not visible inside. tests/FRESH.md holds what the last runs gave.
#
#   tests/fresh-machine.sh [quickstart] [tests] [packages]     default: quickstart tests
#
# `packages` stops short of the builds: packages are installed and every preset is configured.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/deploy/debian_root.sh
root="$PWD/build/fresh-machine/root"

# What each argument runs, in the clone.
declare -A commands=(
  [quickstart]="deploy/quickstart.sh --seconds 5"
  [tests]="tests/run.sh"
  [packages]="deploy/install-packages.sh && for p in release asan-ubsan tsan; do cmake --preset \$p >/dev/null && echo configured \$p; done"
)
(($#)) || set -- quickstart tests
for name; do
  [[ -v commands[$name] ]] || { echo "usage: tests/fresh-machine.sh [quickstart] [tests] [packages]" >&2; exit 2; }
done

started=$SECONDS
step() { printf '== [%4d s] %s\n' $((SECONDS - started)) "$*"; }
step "a bare Debian 12 ($root)"
make_debian_root "$root"
step "a fresh clone of $(git rev-parse --short HEAD)"
git clone -q --no-hardlinks . "$root/expertd"
for name; do
  step "${commands[$name]}"
  began=$SECONDS
  in_root "$root" bash -ec "cd /expertd && ${commands[$name]}"
  step "$name: passed in $((SECONDS - began)) s"
done
remove_root "$root"
