#!/usr/bin/env bash
# The file system of an image: expertd as build.sh left it, the shared libraries that it loads, the certificates of public
# authorities, one user, and dpkg's record of every package that a file came from (where image scanners look for it).
#
#   deploy/docker/rootfs.sh DIR        DIR must not exist
set -euo pipefail
cd "$(dirname "$0")/../.."
root="$1"
mkdir "$root"
mkdir -p "$root"/{dev,proc,sys,model,tmp,usr/bin,usr/lib,usr/lib64,var/lib/dpkg/status.d,etc/ssl/certs,usr/share/doc/expertd}
chmod 1777 "$root/tmp"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"

install -m 755 build/image/bin/expertd "$root/usr/bin/expertd"
install -m 644 LICENSE "$root/usr/share/doc/expertd/LICENSE"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp /etc/debian_version /usr/lib/os-release "$root/etc/"
echo 'expertd:x:65532:65532::/:/usr/sbin/nologin' >"$root/etc/passwd"
echo 'expertd:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

# ldd follows the libraries of libraries; the loader itself has no arrow. Debian's /lib is usr/lib; dpkg knows files by either name.
if ldd build/image/bin/expertd | grep 'not found'; then exit 1; fi
mapfile -t libraries < <(ldd build/image/bin/expertd | sed -nE 's/.*(=> |^\s*)(\/[^ ]+) \(.*/\2/p' | sort -u)
for library in "${libraries[@]}"; do
  install -D -m 755 "$(realpath "$library")" "$root${library/#\/lib/\/usr\/lib}"
done
mapfile -t owners < <(realpath "${libraries[@]}" | sed 'p;s|^/usr||' | xargs dpkg -S 2>/dev/null | sed 's/:.*//')
((${#owners[@]} == ${#libraries[@]})) || { echo "a library is of no package: ${libraries[*]}" >&2; exit 1; }
printf '%s\n' "${owners[@]}" ca-certificates | sort -u | while read -r package; do
  dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
done
