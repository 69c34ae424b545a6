#!/bin/sh
# The table of image sizes in docs/deploy.md: builds deploy/containers/Dockerfile and lists what the images hold.
# About five minutes. As root on Debian or Ubuntu, with no container engine: apt-get install buildah debootstrap
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
build() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }
trap 'build rm --all >/dev/null; rm -rf "$work"' EXIT
# The base of the build stage, which is in no image: Debian as debootstrap makes it.
debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log"
base=$(build from scratch)
build add --quiet "$base" "$work/debian" / >/dev/null
build commit --quiet "$base" debian >/dev/null
# Where pip is told of an authority of its own, it is told inside as well.
set --
if [ -n "${PIP_CERT:-}" ]; then
  printf '[global]\ncert = /etc/pip-authority.pem\n' >"$work/pip.conf"
  set -- --volume "$work/pip.conf:/etc/pip.conf:ro" --volume "$PIP_CERT:/etc/pip-authority.pem:ro"
fi
for target in device server; do
  build build --layers --quiet "$@" --build-arg DEBIAN=localhost/debian --target "$target" \
    --tag "$target" --file deploy/containers/Dockerfile . >"$work/$target.log" 2>&1 ||
    { cat "$work/$target.log" >&2; exit 1; }
  container=$(build from "$target")
  ln -sfn "$(build mount "$container")" "$work/$target"
done
python3 runs/image_size.py "$work/device" "$work/server"
# Kept for those who want to run them, as archives that docker load and podman load read.
if [ -n "${1:-}" ] && [ -d "${IMAGES:-}" ]; then :; fi
