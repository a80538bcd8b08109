#!/usr/bin/env bash
# The cpu image, built from deploy/docker/Dockerfile by buildah (no Docker engine, no registry: its base is a bare Debian 12 from
# debootstrap), and what is in it run as an engine would: read-only, no shell, the image's user and environment, a network of its
# own. The server serves, is probed by the image's own health check, gives right answers, is scraped, and drains. Needs root; part
# of tests/run.sh --long.
#
#   tests/deploy/image.sh [--reuse]      --reuse: the image of the last run instead of a new one
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/deploy/debian_root.sh
work="$PWD/build/image-test"
started=$SECONDS
step() { printf '== [%4d s] %s\n' $((SECONDS - started)) "$*"; }
# Images and containers of this test only.
in_storage() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-vfs}" "$@"; }

import_base() {
  local container
  make_debian_root "$work/base"
  container=$(in_storage from scratch)
  in_storage add -q "$container" "$work/base" / >/dev/null
  in_storage commit -q --rm "$container" "$1" >/dev/null
  remove_root "$work/base"
}

build_image() {
  rm -rf "$work/storage" "$work/run"
  step "a bare Debian 12 as base image"
  import_base localhost/debian:12
  step "build --target cpu"
  rm -rf "$work/context"
  git clone -q --no-hardlinks . "$work/context"
  in_storage build --isolation chroot --format docker --build-arg DEBIAN=localhost/debian:12 --target cpu \
    --ignorefile deploy/docker/Dockerfile.dockerignore -f deploy/docker/Dockerfile -t localhost/expertd:cpu "$work/context"
}

# setting KEY: what the image says, one value a line.
setting() {
  in_storage inspect --type image localhost/expertd:cpu | python3 -c '
import json, sys
value = json.load(sys.stdin)["Docker"]["config"]
for key in sys.argv[1].split("."):
    value = value[key]
print(value if isinstance(value, str) else "\n".join(value))' "$1"
}

# Runs in namespaces of its own, so that mounts and network end with it. Arguments: root, model, file of settings.
exercise() {
  local root="$1" model="$2" server out status service
  local -a environment health command
  # shellcheck source=/dev/null
  . "$3"
  local run=(env -i "${environment[@]}" EXPERTD_INSECURE=true
    "$(command -v chroot)" --userspec="$user" --groups= "$root")
  local expertd=("${run[@]}" "${command[0]}")

  ip link set lo up
  mount_system "$root"
  mount --bind "$model" "$root/model"
  mount -o remount,ro,bind "$root/model"
  mount -o remount,ro,bind "$root"
  ! touch "$root/written" 2>/dev/null || { echo "the root is not read-only"; return 1; }
  [[ ! -e $root/bin/sh && ! -e $root/usr/bin/sh ]] || { echo "the image has a shell"; return 1; }

  out=$(mktemp)
  "${run[@]}" "${command[@]}" >"$out" 2>"$out.log" &
  server=$!
  for _ in $(seq 100); do
    "${run[@]}" "${health[@]}" >/dev/null 2>&1 && break
    kill -0 "$server" || { cat "$out.log"; return 1; }
    sleep 0.1
  done
  "${run[@]}" "${health[@]}"
  for service in live model/0; do "${expertd[@]}" probe --service "$service"; done
  "${expertd[@]}" verify --checkpoint /model --endpoint 127.0.0.1:8470
  curl -sS http://127.0.0.1:9470/metrics | grep -E '^expertd_(build_info|requests_total\{code="OK",rpc="Forward"\})'
  grep -q "^Uid:[[:space:]]*${user%%:*}" "$root/proc/$server/status" || { echo "not the image's user"; return 1; }
  kill -TERM "$server"
  status=0
  wait "$server" || status=$?
  ((status == 0)) || { echo "the server ended with $status"; cat "$out.log"; return 1; }
  ! "${run[@]}" "${health[@]}" 2>/dev/null || { echo "a health check of nothing succeeds"; return 1; }
}

need_root
install_missing ip=iproute2 curl=curl buildah=buildah
mkdir -p "$work"
if [[ "${1:-}" != --reuse ]]; then
  build_image
fi

mapfile -t environment < <(setting Env)
mapfile -t health < <(setting Healthcheck.Test | tail -n +2)  # behind the word CMD
mapfile -t command < <(setting Entrypoint; setting Cmd)
user=$(setting User)
declare -p environment health command user >"$work/settings"

container=$(in_storage from localhost/expertd:cpu)
root=$(in_storage mount "$container")
step "the image's file system: $(du -sm "$root" | cut -f1) MB, $(find "$root/var/lib/dpkg/status.d" -type f | wc -l) packages"
step "'${command[*]}' in it, read-only, as user $user"
status=0
unshare --mount --pid --net --fork --kill-child -- bash -euo pipefail -c \
  "$(declare -f mount_system exercise); exercise \"\$@\"" exercise \
  "$root" "$PWD/tests/data/golden/olmoe" "$work/settings" || status=$?
in_storage rm "$container" >/dev/null
((status == 0)) || exit "$status"
step "passed"
