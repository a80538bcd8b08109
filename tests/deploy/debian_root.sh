# Bare Debian 12 roots for tests, without a container engine. To be sourced, from the top of the repository; needs root.
#
#   make_debian_root DIR       a fresh minimal bookworm in DIR (replaced if it exists); its packages are kept in build/ for the next
#   in_root DIR COMMAND...     runs COMMAND in DIR in mount and process namespaces of its own, with an empty environment;
#                              what it leaves running ends with it. Network and user are the caller's.
#   mount_system DIR           what a container engine mounts into a root: /proc and the devices that programs expect. To be
#                              called in a mount namespace of one's own.
#   remove_root DIR            removes DIR, which must be under a build folder
# shellcheck shell=bash

need_root() { ((EUID == 0)) || { echo "$0: chroot, namespaces and debootstrap need root" >&2; exit 1; }; }

# install_missing COMMAND=PACKAGE...: Debian's packages that this test wants and the quick start does not.
install_missing() {
  local pair
  for pair; do
    command -v "${pair%%=*}" >/dev/null && continue
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${pair#*=}" >/dev/null
  done
}

make_debian_root() {
  local root="$1" packages="$PWD/build/debian-packages.tar" mirror="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
  need_root
  install_missing debootstrap=debootstrap
  remove_root "$root"
  mkdir -p "$root" "$(dirname "$packages")"
  if [[ ! -f $packages ]]; then
    rm -rf "$root.download" "$packages.part"
    debootstrap --variant=minbase --make-tarball="$packages.part" bookworm "$root.download" "$mirror" >"$root.log" 2>&1 ||
      { tail -20 "$root.log"; return 1; }
    rm -rf "$root.download"
    mv "$packages.part" "$packages"
  fi
  debootstrap --variant=minbase --unpack-tarball="$packages" bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
    { tail -20 "$root.log"; return 1; }
  printf 'deb %s bookworm main\ndeb %s bookworm-updates main\ndeb %s-security bookworm-security main\n' \
    "$mirror" "$mirror" "$mirror" >"$root/etc/apt/sources.list"
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  # Authorities of the network that this machine is in; the package ca-certificates takes them up when it is installed.
  mkdir -p "$root/usr/local/share/ca-certificates"
  cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
}

mount_system() {
  local root="$1" node
  mount --make-rprivate /
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=755 dev "$root/dev"
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
}

in_root() {
  local root="$1"
  shift
  unshare --mount --pid --fork --kill-child -- bash -ec "$(declare -f mount_system)"'
    root="$1"; shift
    mount_system "$root"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
      chroot "$root" "$@"' in_root "$root" "$@"
}

remove_root() {
  [[ "$1" == */build/* ]] || { echo "remove_root: $1 is not under a build folder" >&2; return 1; }
  rm -rf --one-file-system "$1"
}
