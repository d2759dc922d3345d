#!/usr/bin/env bash
# Makes sure that a Docker engine answers on this machine. Safe to repeat: it does nothing where one answers already.
#
#   docker.sh          answering: nothing. Installed: start it. Absent: install docker.io, then start it.
#   docker.sh --stop   end the dockerd that this script started by hand; every other one is left alone
#
# Where systemd is the init the service is started; elsewhere (a container, a chroot) dockerd runs in the background, with its pid
# and log in $SKERRY_DOCKERD_DIR (default: var/dockerd beside scripts/, or /run/skerry/dockerd where that cannot be written).
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${SKERRY_DOCKERD_DIR:-}" ]; then
  dir=$SKERRY_DOCKERD_DIR
elif [ -w "$root" ] && [ -f "$root/go.work" ]; then
  dir=$root/var/dockerd
else
  dir=/run/skerry/dockerd
fi
wait_s=${SKERRY_DOCKER_WAIT:-60}

die() {
  echo "docker.sh: $*" >&2
  exit 1
}

# answers asks the engine for its version, by whichever client is there.
answers() {
  if command -v docker >/dev/null; then
    timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1
  elif command -v curl >/dev/null && [ -z "${DOCKER_HOST:-}" ]; then
    curl -fsS -m 10 --unix-socket /var/run/docker.sock http://docker/version >/dev/null 2>&1
  else
    return 1
  fi
}

# ours prints the pid of the dockerd that this script started, where it still runs.
ours() {
  local pid
  pid=$(cat "$dir/dockerd.pid" 2>/dev/null) || return 1
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] && echo "$pid"
}

stop() {
  local pid
  if pid=$(ours); then
    kill -TERM "$pid"
    timeout 60 tail --pid="$pid" -f /dev/null || die "dockerd (pid $pid) did not end within 60 s of SIGTERM"
    echo "docker.sh: ended the dockerd that was started here (pid $pid)"
  fi
  rm -rf "$dir"
  [ "$dir" != /run/skerry/dockerd ] || rmdir --ignore-fail-on-non-empty /run/skerry 2>/dev/null || true
}

install_docker() {
  command -v apt-get >/dev/null || die "Docker is not installed and there is no apt-get: install Docker by hand, then repeat"
  echo "docker.sh: installing docker.io"
  export DEBIAN_FRONTEND=noninteractive
  local apt=(apt-get -q -o DPkg::Lock::Timeout=300) # a board that has just booted may be updating itself
  local packages=(docker.io ca-certificates)        # without the latter no registry is trusted
  "${apt[@]}" update </dev/null || true             # a mirror that is away: the lists of before may do
  ! apt-cache show docker-cli >/dev/null 2>&1 || packages+=(docker-cli) # Debian 13 has the client in a package of its own
  "${apt[@]}" install -y --no-install-recommends "${packages[@]}" </dev/null || die "apt-get could not install ${packages[*]}, see above"
}

start_by_hand() {
  mkdir -p "$dir"
  echo "docker.sh: starting dockerd in the background, log in $dir/dockerd.log"
  setsid nohup dockerd >>"$dir/dockerd.log" 2>&1 </dev/null &
  echo $! >"$dir/dockerd.pid"
}

wait_for_answer() {
  local end=$((SECONDS + wait_s))
  until answers; do
    # Not ours(): between fork and exec the process has another name.
    if [ -f "$dir/dockerd.pid" ] && ! kill -0 "$(cat "$dir/dockerd.pid")" 2>/dev/null; then
      tail -n 15 "$dir/dockerd.log" >&2
      die "dockerd ended by itself; the end of $dir/dockerd.log is above"
    fi
    if [ "$SECONDS" -ge "$end" ]; then
      [ ! -f "$dir/dockerd.log" ] || tail -n 15 "$dir/dockerd.log" >&2
      die "no Docker engine answered within $wait_s s (SKERRY_DOCKER_WAIT); see above, or: journalctl -u docker"
    fi
    sleep 0.2
  done
}

case ${1:-} in
--stop) stop && exit 0 ;;
'') ;;
*) die "usage: docker.sh [--stop]" ;;
esac

answers && exit 0
[ -z "${DOCKER_HOST:-}" ] || die "DOCKER_HOST is $DOCKER_HOST, and no engine answers there: start that one, or unset DOCKER_HOST"
[ "$(id -u)" = 0 ] || die "no Docker engine answers to the user $(id -un): repeat with sudo, or let an administrator run: adduser $(id -un) docker"
command -v dockerd >/dev/null || install_docker
if [ -d /run/systemd/system ]; then
  systemctl start docker || die "systemd could not start Docker; see: journalctl -u docker"
elif ! ours >/dev/null; then
  rm -f "$dir/dockerd.pid"
  answers || start_by_hand # the package may have started it
fi
wait_for_answer
echo "docker.sh: a Docker engine answers"
