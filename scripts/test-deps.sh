#!/usr/bin/env bash
# Installs the Debian packages that the tests need. Quick, and no root needed, where all are there already.
#   --check   installs nothing: says by its exit code whether all are there
set -euo pipefail

# For each package one program or Python module of it, so that one that came another way counts too.
needs=(
  docker.io:docker
  gcc:gcc
  libc6-dev:/usr/include/stdio.h
  curl:curl
  mosquitto:mosquitto
  mosquitto-clients:mosquitto_pub
  nodejs:node
  npm:npm
  python3:/usr/bin/python3
  python3-socketio:python:socketio
  python3-websocket:python:websocket
  python3-requests:python:requests
  qemu-user-static:qemu-arm-static
  iproute2:ss
  iptables:iptables-legacy-restore
  iputils-ping:ping
  openssl:openssl
  shellcheck:shellcheck
  bsdutils:script
  util-linux:setpriv
  systemd:systemd-analyze
)

there() {
  case $1 in
  python:*) /usr/bin/python3 -c "import ${1#python:}" 2>/dev/null ;; # Debian's modules are for Debian's Python
  /*) [ -e "$1" ] ;;
  *) command -v "$1" >/dev/null ;;
  esac
}

export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for need in "${needs[@]}"; do
  there "${need#*:}" || missing+=("${need%%:*}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "${1:-}" != --check ] || exit 1

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "test-deps.sh: missing: ${missing[*]}; install them, on Debian by: sudo ${BASH_SOURCE[0]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# A package that starts a broker or a web server would take the ports that tests and make up want.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -q </dev/null
apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
if [ -d /run/systemd/system ] && [[ " ${missing[*]} " == *" mosquitto "* ]]; then
  systemctl disable -q mosquitto # the tests start their own; at the next boot this one would take port 1883
fi
