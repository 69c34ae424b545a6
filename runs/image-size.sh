#!/bin/sh
# The table of image sizes in docs/results/speed.md: builds deploy/containers/Dockerfile and lists what the images hold.
# About five minutes. As root on Debian or Ubuntu: apt-get install buildah debootstrap
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export BUILDAH_ISOLATION=chroot
store() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }
trap 'store rm --all >/dev/null; rm -rf "$work"' EXIT
# The base of the build stage, which is in neither image: Debian as debootstrap makes it.
debootstrap --variant=minbase bookworm "$work/debian" >"$work/log" || { cat "$work/log" >&2; exit 1; }
base=$(store from scratch)
store add --quiet "$base" "$work/debian" / >/dev/null
store commit --quiet "$base" localhost/debian:latest >/dev/null
# Where pip has a certificate authority of its own, it has it inside too.
set --
if [ -n "${PIP_CERT:-}" ]; then
  printf '[global]\ncert = /etc/pip-authority.pem\n' >"$work/pip.conf"
  set -- --volume "$work/pip.conf:/etc/pip.conf:ro" --volume "$PIP_CERT:/etc/pip-authority.pem:ro"
fi
for target in device server; do
  store build --format docker --layers --pull-never "$@" --build-arg DEBIAN=localhost/debian --target "$target" \
    --tag "localhost/$target" --file deploy/containers/Dockerfile . >"$work/log" 2>&1 ||
    { tail -n 40 "$work/log" >&2; exit 1; }
  container=$(store from "localhost/$target")
  ln -sfn "$(store mount "$container")" "$work/$target"
done
python3 runs/image_size.py "$work/device" "$work/server"
