#!/bin/sh
# The tables of docs/results/reach.md: bytes on the wire per offloaded image, and what fits a LoRaWAN packet; about two
# minutes. It needs root, for a packet socket on the loopback interface, and Debian's mosquitto for the row of MQTT.
# Arguments go to the program.
set -eu
cd "$(dirname "$0")/.."
exec python runs/wire_bytes.py "$@"
