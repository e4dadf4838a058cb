#!/usr/bin/env bash
# Train the demo tasks again and put their prompt files where `make run` finds them. A few minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
mkdir -p examples/prompts
for task in ${TASKS:-sentiment question-type support-intent urgency topic}; do
  rm -rf "runs/examples/$task"
  "$bin/promptmux" train "examples/$task/train.toml"
  cp "runs/examples/$task/prompt.safetensors" "examples/prompts/$task.safetensors"
done
