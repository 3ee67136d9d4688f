#!/usr/bin/env bash
# `make demo`: a server on 127.0.0.1 inside a container, fetched through this machine's own localhost.
# Sets up what is missing, and takes away what it started: container, supervisor, and the engine if it started one.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
example=examples/hello
begun=$SECONDS

say() { printf '%s\n' "$*" >&2; }
show() {
  printf '\n$ %s\n' "$*" >&2
  "$@"
}

make --silent --no-print-directory PYTHON="${PYTHON:-python3}" .venv/.installed >&2
export PATH=$bin:$PATH

# Short, because the path of a unix socket may have about 100 bytes.
AUTOFORWARD_HOME=$(mktemp -d /tmp/af-demo-XXXXXX)
export AUTOFORWARD_HOME
engine_was_ours=no
if [ -e .cache/engine.json ]; then engine_was_ours=yes; fi

finish() {
  status=$?
  trap - EXIT INT TERM
  # Quiet: after a good run the container is gone already, and this has nothing to do.
  devdown --workspace-folder "$example" --remove >/dev/null 2>&1 || true
  leftover=$(docker ps -aq --filter "label=devcontainer.local_folder=$PWD/$example" 2>/dev/null) || true
  if [ -n "$leftover" ]; then
    say "demo: devdown left the container $leftover, removing it"
    docker rm -f "$leftover" >/dev/null || true
    status=1
  fi
  python -m scripts.end_supervisor "$AUTOFORWARD_HOME" || true
  rm -rf "$AUTOFORWARD_HOME"
  if [ "$engine_was_ours" = no ]; then python -m scripts.engine stop || true; fi
  if [ "$status" = 0 ]; then
    say "demo: ok ($((SECONDS - begun)) s)"
  else
    say "demo: failed with status $status"
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

python -m scripts.engine ensure
if [ -z "${AUTOFORWARD_EXAMPLE_IMAGE:-}" ]; then
  AUTOFORWARD_EXAMPLE_IMAGE=$(python -m tests.images.build full | cut -d' ' -f2)
fi
export AUTOFORWARD_EXAMPLE_IMAGE

say ""
say "The example serves a page on 127.0.0.1:3000 inside its container; nothing publishes or declares that port:"
grep -v '^ *//' "$example/.devcontainer/devcontainer.json" >&2

show devup --workspace-folder "$example" --auto-forward
say ""
say "Waiting for the event of port 3000 (autoforward events --follow):"
event=$(python -m scripts.await_forward 3000 --timeout 30)
printf '%s\n' "$event"
show autoforward list
url=$(printf '%s' "${event#PORT_EVENT: }" | python -c 'import json, sys; print(json.load(sys.stdin)["url"])')
show python -m scripts.fetch "$url"
show devdown --workspace-folder "$example" --remove
