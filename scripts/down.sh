#!/usr/bin/env bash
# Ends what up.sh started and leaves nothing behind: job, engines, manager, containers, image, logs and data. Safe to repeat.
# A Docker engine that ran before up.sh is left running.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/up-lib.sh"

if [ ! -d "$run" ]; then
  say "nothing is up"
  exit 0
fi

containers() { # of the nodes that up.sh started, and of nobody else
  local name
  for name in "${names[@]}"; do
    docker ps -aq --filter "label=skerry.node=$name"
  done
}

# no_containers says that no instance is left; sandboxes that wait for one are removed below.
no_containers() {
  local name
  for name in "${names[@]}"; do
    [ -z "$(docker ps -aq --filter "label=skerry.node=$name" --filter label=skerry.instance)" ] || return 1
  done
}

# delete_job has the engines stop the containers with the grace that the job asks for. Without an engine nobody would.
delete_job() {
  local name
  for name in "${names[@]}"; do
    pid_of "$name" >/dev/null || return 0
  done
  skerry job status "$job" >/dev/null 2>&1 || return 0
  say "deleting the job"
  skerry job delete "$job" || true
  wait_until 30 no_containers || echo "its containers did not end in time; they are removed below"
}

end_process() {
  local pid
  pid=$(pid_of "$1") || return 0
  say "ending $1 (pid $pid)"
  kill -TERM "$pid"
  if ! timeout 20 tail --pid="$pid" -f /dev/null; then
    echo "$1 did not end within 20 s of SIGTERM; killing it, its log is $run/$1.log" >&2
    kill -KILL "$pid"
    status=1
  fi
}

# clean_up takes the node's links and rules of the cluster's network away, which outlive an engine on purpose.
clean_up() {
  [ -f "$run/$1/key" ] && [ -x bin/node-engine ] || return 0
  bin/node-engine --clean-up --data "$run/$1" || status=1
}

remove_containers() {
  local left
  left=$(containers)
  if [ -n "$left" ]; then
    say "removing containers that were left"
    xargs docker rm -f -v <<<"$left" >/dev/null
  fi
  if docker image inspect "$image" >/dev/null 2>&1; then
    docker rmi "$image" >/dev/null
  fi
  # Another node on this machine may use the image of the sandboxes; it would make it again.
  docker images -q skerry-sandbox | xargs -r docker rmi >/dev/null 2>&1 || true
}

status=0
mapfile -t names < <(nodes)
if pid_of manager >/dev/null; then
  delete_job
fi
for name in "${names[@]}" manager; do
  end_process "$name"
done
for name in "${names[@]}"; do
  clean_up "$name"
done
if docker version >/dev/null 2>&1; then
  remove_containers
fi
if [ -e "$run/started-dockerd" ]; then
  SKERRY_DOCKERD_DIR=$root/var/dockerd scripts/docker.sh --stop
fi
[ "$status" = 0 ] || die "not everything ended as it should; the logs are in $run"
rm -rf "$run"
say "nothing is left"
