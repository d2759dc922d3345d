# shellcheck shell=bash disable=SC2034 # some variables are for those who source this
# What up.sh and down.sh share: where things are, and which processes are theirs. Sourced by both; does nothing by itself.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=$root/var/up # everything that make up leaves: pids, logs, data
job=demo
image=skerry-demo:latest
cd "$root" || exit

say() { echo "== $*"; }

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# pid_of prints the pid of a process that up.sh started (manager, or a node's name), where it still runs. The program behind the
# pid is looked at too: after a reboot the number may be somebody else's.
pid_of() {
  local pid exe
  pid=$(cat "$run/$1.pid" 2>/dev/null) || return 1
  exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
  [[ $exe == "$root/bin/"* ]] && echo "$pid"
}

# nodes prints the names of the nodes that up.sh started.
nodes() {
  local file
  for file in "$run"/*.pid; do
    file=$(basename "$file" .pid)
    case $file in '*' | manager) ;; *) echo "$file" ;; esac
  done
}

# address prints what the manager's log says it listens at: "http" or "mqtt".
address() {
  grep -h '"msg":"listening"' "$run/manager.log" 2>/dev/null | tail -n 1 | grep -o "\"$1\":\"[^\"]*\"" | cut -d '"' -f 4 | sed 's/^\(0\.0\.0\.0\|\[::\]\)\?:/127.0.0.1:/'
}

skerry() { bin/skerry --broker "tcp://$(address mqtt)" "$@"; }

# flat prints JSON without the spaces between its parts, so that grep can look at it.
flat() { tr -d ' \n\t'; }

# wait_until SECONDS COMMAND...: runs the command until it succeeds.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}
