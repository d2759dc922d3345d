#!/usr/bin/env bash
# A cluster on this machine: a manager, a node engine for each name given (default: lab-1), and a demo job with two replicas.
# Safe to repeat: what runs is left alone, what is missing is started. down.sh ends it all.
#   SKERRY_HTTP, SKERRY_MQTT   where the manager listens (default 127.0.0.1:10100 and 127.0.0.1:1883)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/up-lib.sh"

http=${SKERRY_HTTP:-127.0.0.1:10100}
mqtt=${SKERRY_MQTT:-127.0.0.1:1883}
[ $# -gt 0 ] || set -- lab-1

start_docker() {
  local before=no
  [ -d var/dockerd ] && before=yes
  SKERRY_DOCKERD_DIR=$root/var/dockerd scripts/docker.sh
  if [ "$before" = no ] && [ -d var/dockerd ]; then
    touch "$run/started-dockerd"
  fi
}

install_curl() {
  command -v curl >/dev/null && return
  command -v apt-get >/dev/null || die "curl is not installed and there is no apt-get: install it by hand, then repeat"
  say "installing curl"
  apt-get -q update </dev/null || true # a mirror that is away: the lists of before may do
  DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends curl </dev/null ||
    die "apt-get could not install curl, see above"
}

# free checks that nobody listens at an address yet, to say it in better words than the manager can.
free() {
  local host=${1%:*} port=${1##*:}
  [[ $1 == *:* && $port =~ ^[0-9]+$ ]] || die "$2 is $1, which is not an address and a port such as 127.0.0.1:10100"
  [ -n "$host" ] && [ "$host" != 0.0.0.0 ] || host=127.0.0.1
  if [ "$port" != 0 ] && (: <>"/dev/tcp/$host/$port") 2>/dev/null; then
    die "port $port on $host is taken by another program: end that one, or choose another port, as in: make up $2=$host:$((port + 1))"
  fi
}

# in_background NAME PROGRAM ARGS...: starts a program that outlives this shell.
in_background() {
  local name=$1
  shift
  setsid nohup "$@" >>"$run/$name.log" 2>&1 </dev/null &
  echo $! >"$run/$name.pid"
}

# ready NAME COMMAND...: waits for the command to succeed, as long as the process called NAME runs.
ready() {
  local name=$1
  shift
  if ! wait_until 30 ready_or_gone "$name" "$@" || ! "$@"; then
    tail -n 15 "$run/$name.log" >&2
    die "$name did not get ready; the end of $run/$name.log is above"
  fi
}

ready_or_gone() {
  local name=$1
  shift
  "$@" || ! kill -0 "$(cat "$run/$name.pid")" 2>/dev/null
}

manager_listens() { [ -n "$(address http)" ] && curl -fsS -o /dev/null "http://$(address http)/healthz" 2>/dev/null; }

start_manager() {
  if pid_of manager >/dev/null; then
    say "the cluster manager is running (pid $(pid_of manager))"
    return
  fi
  free "$http" SKERRY_HTTP
  free "$mqtt" SKERRY_MQTT
  say "starting the cluster manager"
  rm -f "$run/manager.log"
  in_background manager bin/cluster-manager --cluster lab --http "$http" --mqtt "$mqtt" --data "$run/manager"
  ready manager manager_listens
}

node_online() { skerry node list --json 2>/dev/null | flat | grep -q "\"node\":\"$1\",\"kind\":\"[a-z]*\",\"state\":\"online\""; }

start_node() {
  [[ $1 =~ ^[a-z0-9]([a-z0-9-]*[a-z0-9])?$ && $1 != manager ]] || die "$1 is no name for a node: small letters, digits and hyphens"
  if pid_of "$1" >/dev/null; then
    say "node $1 is running (pid $(pid_of "$1"))"
  else
    say "starting node $1"
    in_background "$1" bin/node-engine --manager "http://$(address http)" --name "$1" --data "$run/$1"
  fi
  ready "$1" node_online "$1"
}

# make_image puts the demo program into an image of its own, with no registry and no base image. It is left alone where it holds
# this very program already.
make_image() {
  local arch sum
  arch=$(docker version --format '{{.Server.Arch}}')
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$run/image/demo" ./scripts/demo
  sum=$(sha256sum "$run/image/demo" | cut -c 1-16)
  if [ "$(docker image inspect --format '{{index .Config.Labels "skerry.demo"}}' "$image" 2>/dev/null)" = "$sum" ]; then
    say "the image $image is there"
    return
  fi
  say "making the image $image"
  tar -C "$run/image" -c --owner 0 --group 0 demo |
    docker import -c 'ENTRYPOINT ["/demo"]' -c 'EXPOSE 8080' -c "LABEL skerry.demo=$sum" - "$image" >/dev/null
}

job_runs() { skerry job status "$job" --json 2>/dev/null | flat | grep -q "\"job\":\"$job\",\"state\":\"running\""; }

job_there() { skerry job status "$job" >/dev/null 2>&1; }

deploy() {
  if job_there; then
    say "the job $job is there"
  else
    deploy_job
  fi
  wait_until 60 job_runs || {
    skerry job status "$job" >&2
    die "$job does not run after 60 s; logs are in $run"
  }
}

deploy_job() {
  say "deploying $job by MQTT: skerry --broker tcp://$(address mqtt) job deploy -f scripts/demo/job.json"
  skerry job deploy -f scripts/demo/job.json || die "the job was not taken, see above"
}

first_url() { echo "http://127.0.0.1:$(skerry job status "$job" --json | flat | grep -o '"host":[0-9]*' | head -n 1 | cut -d : -f 2)/"; }

# by_name asks the job by its name in the cluster's network, from within one of its own containers; or says why there is no such network.
by_name() {
  local name container ask off=
  ask="http://$job.skerry.internal:8080/"
  while read -r name; do
    container=$(docker ps -q --filter "label=skerry.node=$name" --filter "label=skerry.job=$job" | head -n 1)
    [ -n "$container" ] || continue
    if ! skerry node status "$name" --json | flat | grep -q '"overlay":{"state":"up"'; then
      off=$off"$name: $(skerry node status "$name" | sed -n 's/^overlay: *//p')"$'\n'
      continue
    fi
    say "docker exec $container /demo get $ask"
    for _ in 1 2; do # in turn
      docker exec "$container" /demo get "$ask" || die "$name has its part in the cluster's network, but $job does not answer by its name; logs are in $run"
    done
    return
  done < <(nodes)
  say "no request by name: the nodes that run $job have no part in the cluster's network, and their containers have Docker's own"
  echo -n "$off"
}

show() {
  local url broker
  url=$(first_url)
  broker="tcp://$(address mqtt)"
  say "nodes and jobs"
  skerry node list
  skerry job status "$job"
  say "curl $url"
  curl -fsS "$url" || die "the job runs, but does not answer at $url"
  by_name
  cat <<END

To go on:
  # the cluster's network: who reaches whom, which services there are, what a name stands for
  bin/skerry --broker $broker network status
  bin/skerry --broker $broker network resolve $job
  # what runs where (--json for programs); what happens, as it happens
  bin/skerry --broker $broker job status $job
  bin/skerry --broker $broker events
  # the engine dies, the job answers; make up brings the engine back
  ${SUDO_USER:+sudo }kill -9 \$(cat var/up/$1.pid); curl -s $url
  # a second node, and a move to it
  make up NODES="$1 lab-2"
  bin/skerry --broker $broker job move $job --from $1 --to lab-2
  # end all of it, leave nothing
  make down
Logs and data are in var/up/.
END
}

[ "$(id -u)" = 0 ] || die "a node makes network devices and starts containers, which needs root: sudo $0 $*"
install_curl
mkdir -p "$run/image"
start_docker
start_manager
for name in "$@"; do
  start_node "$name"
done
make_image
deploy
show "$1"
