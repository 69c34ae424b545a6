#!/bin/sh
# Debian's packages that the tests in tests/deploy and `make check-deploy` need, where they are missing; with the word
# containers also those of `make check-containers`. As root.
set -eu
packages=
want() { command -v "$1" >/dev/null || packages="$packages $2"; }
want promtool prometheus
want nginx nginx-light
want docker-compose docker-compose
want docker-registry docker-registry
want kubectl kubernetes-client
want mosquitto mosquitto
want node nodejs
want npm npm
want systemd-analyze systemd
if [ "${1:-}" = containers ]; then
  want dockerd docker.io
  want debootstrap debootstrap
  want qemu-aarch64-static qemu-user-static
fi
[ -n "$packages" ] || exit 0
# The packages of Prometheus, Mosquitto and both of Docker would start them as services.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm "$policy"' EXIT
fi
apt-get update --quiet --quiet
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends $packages >/dev/null
