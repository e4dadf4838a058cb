#!/bin/sh
# Train and publish; started again after its pod was lost, go on where it was.
# usage: train.sh CONFIG RUN_FOLDER ALIAS; PROMPTMUX_ADMIN_URL and PROMPTMUX_ADMIN_KEY say where the prompt goes.
set -eu
config=$1 run=$2 alias=$3
if [ -e "$run/metrics.json" ]; then # written last: the run is finished, and only publishing is left
  exec promptmux publish "$run/prompt.safetensors" --server "$PROMPTMUX_ADMIN_URL" --alias "$alias"
elif [ -e "$run/config.toml" ]; then
  exec promptmux train --resume "$run" --publish "$PROMPTMUX_ADMIN_URL" --alias "$alias"
else
  exec promptmux train "$config" --output "$run" --publish "$PROMPTMUX_ADMIN_URL" --alias "$alias"
fi
