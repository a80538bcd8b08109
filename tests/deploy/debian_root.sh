# Bare Debian 12 roots for tests, without a container engine. To be sourced; needs root and Debian's packages.
#
#   make_debian_root DIR       a fresh minimal bookworm under DIR (replaced if it exists); what it downloads is kept for the next
#   in_root DIR COMMAND...     runs COMMAND in DIR in mount and process namespaces of its own, with an empty environment;
#                              what it leaves running ends with it. Network and user are the caller's.
#   remove_root DIR            unmounts what is left and removes DIR
# shellcheck shell=bash

need_root() { ((EUID == 0)) || { echo "$0: chroot and debootstrap need root" >&2; exit 1; }; }

install_debootstrap() {
  command -v debootstrap >/dev/null && return
  apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
}

make_debian_root() {
  local root="$1" packages="$PWD/build/debian-packages.tar" mirror="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
  need_root
  install_debootstrap
  remove_root "$root"
  mkdir -p "$root" "$(dirname "$packages")"
  if [[ ! -f $packages ]]; then
    # debootstrap leaves the work folder of --make-tarball to nobody: a fresh one each time.
    debootstrap --variant=minbase --make-tarball="$packages.part" bookworm "$root.download" "$mirror" >"$root.log" 2>&1
    rm -rf "$root.download"
    mv "$packages.part" "$packages"
  fi
  debootstrap --variant=minbase --unpack-tarball="$packages" bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
    { tail -20 "$root.log"; return 1; }
  printf 'deb %s bookworm main\ndeb %s bookworm-updates main\ndeb %s-security bookworm-security main\n' \
    "$mirror" "$mirror" "$mirror" >"$root/etc/apt/sources.list"
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
}

# Inside, /dev has what programs expect of a container and nothing more.
in_root() {
  local root="$1"
  shift
  unshare --mount --pid --fork --kill-child -- bash -ec '
    root="$1"; shift
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    mkdir "$root/dev/shm" && mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
    for node in null zero full random urandom tty; do
      touch "$root/dev/$node" && mount --bind "/dev/$node" "$root/dev/$node"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$root" "$@"' in_root "$root" "$@"
}

remove_root() {
  [[ "$1" == */build/* ]] || { echo "remove_root: $1 is not under a build folder" >&2; return 1; }
  rm -rf --one-file-system "$1"
}
