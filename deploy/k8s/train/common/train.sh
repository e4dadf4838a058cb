#!/bin/sh
# Train and publish; started again after its pod was lost, go on where it was.
# usage: train.sh CONFIG RUN_FOLDER ALIAS; PROMPTMUX_ADMIN_URL and PROMPTMUX_ADMIN_KEY say where the prompt goes. With
# KEEP_RUNS=N only the last N runs beside RUN_FOLDER are kept, it included.
set -eu
config=$1 run=$2 alias=$3
if [ -n "${KEEP_RUNS:-}" ]; then
  # A run is a folder with the config.toml with which it began. One that cannot be removed stops no training.
  ls -1t "$(dirname "$run")"/*/config.toml 2>/dev/null | grep -vxF "$run/config.toml" | tail -n "+$KEEP_RUNS" |
    while read -r old; do
      echo "train.sh: the run ${old%/config.toml} is removed: $KEEP_RUNS are kept"
      rm -rf "${old%/config.toml}" || true
    done
fi
if [ -e "$run/metrics.json" ]; then # written last: the run is finished, and only publishing is left
  exec promptmux publish "$run/prompt.safetensors" --server "$PROMPTMUX_ADMIN_URL" --alias "$alias"
elif [ -e "$run/config.toml" ]; then
  exec promptmux train --resume "$run" --publish "$PROMPTMUX_ADMIN_URL" --alias "$alias"
else
  exec promptmux train "$config" --output "$run" --publish "$PROMPTMUX_ADMIN_URL" --alias "$alias"
fi
