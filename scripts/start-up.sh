#!/usr/bin/env bash
# Runs a node engine on this board, in the foreground, until it gets SIGTERM or Ctrl-C. README.md beside this file has examples.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/$(basename "${BASH_SOURCE[0]}")

usage() {
  cat <<'END'
usage: start-up.sh amd64|arm-7|arm64 [flags of node-engine]

Runs a node engine on this board (Debian, Ubuntu, Raspbian) in the foreground. Ending it stops no workload.
  CLUSTER_MANAGER_IP     address or name of the cluster manager (needed)
  CLUSTER_MANAGER_PORT   its HTTP port (default 10100)
  SKERRY_MANAGER         its URL in place of both, such as https://manager:10100
  SKERRY_MANAGER_CA      for https: file with the authority of its certificate (default: the system's authorities)
  SKERRY_ENGINE          the node-engine program to run (default: looked for in ../bin/<arch>, ../bin and
                         /usr/local/bin, else built where Go is installed)
Docker is installed and started where it is missing. The superuser password is asked for once, and only where this
user may not use Docker. To keep the engine after logging out:
  sudo -v; nohup ./start-up.sh amd64 >/dev/null 2>&1 &
END
}

die() {
  echo "start-up.sh: $*" >&2
  exit 1
}

# check_arch compares what was asked for with what the programs of this board are made for. A 64-bit kernel may carry a 32-bit
# system (Raspberry Pi OS does), so uname alone does not tell.
check_arch() {
  local machine bits board
  machine=$(uname -m)
  bits=$(getconf LONG_BIT 2>/dev/null || echo unknown)
  case $machine/$bits in
  x86_64/32) die "this is a 32-bit system on a 64-bit processor; Skerry needs a 64-bit one there" ;;
  x86_64/*) board=amd64 ;;
  aarch64/32 | armv8l/* | armv7l/*) board=arm-7 ;;
  aarch64/*) board=arm64 ;;
  *) die "this board is a $machine, for which there is no node engine (amd64, arm-7 and arm64 exist)" ;;
  esac
  [ "$1" = "$board" ] || die "$1 was asked for, but this board is $board (uname -m says $machine, $bits-bit programs): run start-up.sh $board"
}

# find_engine prints the path of the engine to run; it is built where there is only its source.
find_engine() {
  local arch=$1 file
  if [ -n "${SKERRY_ENGINE:-}" ]; then
    [ -x "$SKERRY_ENGINE" ] || die "SKERRY_ENGINE is $SKERRY_ENGINE, which is not a program"
    echo "$SKERRY_ENGINE"
    return
  fi
  for file in "$here/../bin/$arch/node-engine" "$here/../bin/node-engine" /usr/local/bin/node-engine; do
    if [ -x "$file" ]; then
      echo "$file"
      return
    fi
  done
  if [ ! -f "$here/../node-engine/main.go" ] || ! go_is_there; then
    die "no node-engine program found: copy it to $here/../bin/$arch/ (make cross builds it), name it in SKERRY_ENGINE, or install Go"
  fi
  echo "start-up.sh: building the node engine" >&2
  build_engine "$arch" >&2 || die "the node engine could not be built, see above"
  echo "$here/../bin/$arch/node-engine"
}

go_is_there() {
  export PATH="$PATH:/usr/local/go/bin"
  command -v go >/dev/null
}

build_engine() {
  cd "$here/.."
  case $1 in
  arm-7) export GOARCH=arm GOARM=7 CGO_ENABLED=0 ;;
  *) export GOARCH=$1 ;;
  esac
  # The flag keeps hundreds of warnings about NVIDIA's own header away; no git needed, as the tree may have come by scp.
  CGO_CFLAGS="-O2 -g -Wno-deprecated-declarations" go build -trimpath -buildvcs=false -o "bin/$1/node-engine" ./node-engine
}

manager_url() {
  local host=${CLUSTER_MANAGER_IP:-} port=${CLUSTER_MANAGER_PORT:-10100}
  if [ -n "${SKERRY_MANAGER:-}" ]; then
    echo "$SKERRY_MANAGER" # the engine checks it
    return
  fi
  [ -n "$host" ] || die "neither CLUSTER_MANAGER_IP nor SKERRY_MANAGER is set: one names the cluster manager, as in CLUSTER_MANAGER_IP=192.0.2.10 $self ${1:-amd64}"
  case $port in
  *[!0-9]*) die "CLUSTER_MANAGER_PORT is $port, which is not a port number" ;;
  esac
  case $host in
  *[!A-Za-z0-9.:_%\[\]-]*) die "CLUSTER_MANAGER_IP is $host, which is neither an address nor a name" ;;
  \[*) ;;
  *:*) host="[$host]" ;;
  esac
  echo "http://$host:$port"
}

docker_answers() {
  command -v docker >/dev/null && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

# may_prompt says whether a password can be typed: there is a terminal and this is its foreground job. From the background sudo
# would be stopped by the terminal, silently and for good.
may_prompt() {
  local group foreground
  { : </dev/tty; } 2>/dev/null || return 1
  read -r group foreground < <(sed 's/^.*) //' /proc/$$/stat | cut -d ' ' -f 3,6)
  [ "$group" = "$foreground" ]
}

# become_root starts this script again as root: one call of sudo, so one question for the password.
become_root() {
  local keep=CLUSTER_MANAGER_IP,CLUSTER_MANAGER_PORT,SKERRY_ENGINE name text
  text="the user $(id -un) may not use Docker"
  while IFS='=' read -r name _; do
    case $name in SKERRY_ENGINE) ;; SKERRY_* | DOCKER_*) keep=$keep,$name ;; esac
  done < <(env)
  if ! command -v sudo >/dev/null; then
    die "$text and there is no sudo: run this as root, or let an administrator run: adduser $(id -un) docker"
  fi
  if ! sudo -n true 2>/dev/null && ! may_prompt; then
    text="$text, and there is no terminal in the foreground to ask for the superuser password: run sudo -v first, or run this as root, or let an administrator run: adduser $(id -un) docker"
    # With 2>/dev/null nobody would see why it ended; the terminal it was started from is the one place left.
    [ -t 2 ] || { echo "start-up.sh: $text" >/dev/tty; } 2>/dev/null || true
    die "$text"
  fi
  export SKERRY_ENGINE=$engine
  exec sudo -p "start-up.sh: superuser password for Docker: " --preserve-env="$keep" -- "$self" "$@"
}

case ${1:-} in
-h | --help)
  usage
  exit 0
  ;;
amd64 | arm-7 | arm64) arch=$1 ;;
'') usage >&2 && exit 2 ;;
*) die "no such architecture: $1 (amd64, arm-7 and arm64 exist)" ;;
esac

check_arch "$arch"
manager=$(manager_url "$arch")
engine=$(find_engine "$arch")
if ! docker_answers; then
  [ "$(id -u)" = 0 ] || become_root "$@"
  [ -x "$here/docker.sh" ] || die "no Docker engine answers, and $here/docker.sh, which would start it, is missing"
  "$here/docker.sh"
fi
shift
exec "$engine" --manager "$manager" "$@"
