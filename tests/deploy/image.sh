#!/usr/bin/env bash
# The steps of deploy/docker/Dockerfile for the cpu image, taken without Docker: packages and build in a bare Debian 12, the
# image's file system out of it, and in that file system alone - read-only, no shell, its own user, the image's environment and
# a network of its own - the server serves, is probed, gives right answers, is scraped, and drains. Needs root; part of
# tests/run.sh --long.
#
#   tests/deploy/image.sh [--reuse]      --reuse: the file system of the last run (build/image-test/rootfs) instead of a new one
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/deploy/debian_root.sh
work="$PWD/build/image-test"
started=$SECONDS
step() { printf '== [%4d s] %s\n' $((SECONDS - started)) "$*"; }

build_rootfs() {
  local builder="$work/builder"
  step "packages: deploy/install-packages.sh in a bare Debian 12"
  make_debian_root "$builder"
  git clone -q --no-hardlinks . "$builder/src"
  # What the build's context leaves out must not be needed.
  sed -n 's|^/||p' deploy/docker/Dockerfile.dockerignore | while read -r ignored; do rm -rf "${builder:?}/src/$ignored"; done
  in_root "$builder" /src/deploy/install-packages.sh
  step "build-cpu: deploy/docker/build.sh OFF"
  in_root "$builder" /src/deploy/docker/build.sh OFF
  step "build-cpu: deploy/docker/rootfs.sh /rootfs"
  in_root "$builder" /src/deploy/docker/rootfs.sh /rootfs
  remove_root "$work/rootfs"
  mv "$builder/rootfs" "$work/rootfs"
  remove_root "$builder"
}

# Runs in namespaces of its own: mounts and network end with it.
exercise_rootfs() {
  local root="$1" model="$2" server out status service
  local -a environment
  # What the Dockerfile says is what runs; EXPERTD_INSECURE is for whoever runs the image to say.
  mapfile -t environment < <(sed -n '/AS settings/,/^USER/p' deploy/docker/Dockerfile | grep -oE 'EXPERTD_[A-Z_]+=[^ \\]+')
  local expertd=(env -i "${environment[@]}" EXPERTD_INSECURE=true
    "$(command -v chroot)" --userspec=65532:65532 --groups= "$root" /usr/bin/expertd)

  ip link set lo up
  mount_system "$root"
  mount --bind "$model" "$root/model"
  mount -o remount,ro,bind "$root/model"
  mount -o remount,ro,bind "$root"
  ! touch "$root/written" 2>/dev/null || { echo "the root is not read-only"; return 1; }
  [[ ! -e $root/bin/sh && ! -e $root/usr/bin/sh ]] || { echo "the image has a shell"; return 1; }

  out=$(mktemp)
  "${expertd[@]}" serve >"$out" 2>"$out.log" &
  server=$!
  for _ in $(seq 100); do
    "${expertd[@]}" probe >/dev/null 2>&1 && break
    kill -0 "$server" || { cat "$out.log"; return 1; }
    sleep 0.1
  done
  for service in "" live model/0; do "${expertd[@]}" probe --service "$service"; done
  "${expertd[@]}" verify --checkpoint /model --endpoint 127.0.0.1:8470
  curl -sS http://127.0.0.1:9470/metrics | grep -E '^expertd_(build_info|requests_total\{code="OK",rpc="Forward"\})'
  grep -q '^Uid:[[:space:]]*65532' "$root/proc/$server/status" || { echo "not the image's user"; return 1; }
  kill -TERM "$server"
  status=0
  wait "$server" || status=$?
  ((status == 0)) || { echo "the server ended with $status"; cat "$out.log"; return 1; }
  ! "${expertd[@]}" probe --timeout-ms 500 2>/dev/null || { echo "a probe of nothing succeeds"; return 1; }
}

need_root
install_missing ip=iproute2 curl=curl
[[ "${1:-}" == --reuse && -d $work/rootfs ]] || build_rootfs
step "the image's file system: $(du -sm "$work/rootfs" | cut -f1) MB, $(find "$work/rootfs/var/lib/dpkg/status.d" -type f | wc -l) packages"
step "serve in it, read-only, as user 65532"
unshare --mount --pid --net --fork --kill-child -- bash -euo pipefail -c \
  "$(declare -f mount_system exercise_rootfs); exercise_rootfs \"\$@\"" exercise \
  "$work/rootfs" "$PWD/tests/data/golden/olmoe"
step "passed"
