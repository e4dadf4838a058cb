#!/bin/sh
# Start Redis in the working folder, after mending the end of its log: docs/redis.md says what a power cut does to it.
set -eu
for log in appendonlydir/*.manifest; do
  if [ -e "$log" ]; then
    echo y | redis-check-aof --fix "$log"
  fi
done
exec redis-server "$(dirname "$0")/redis.conf" "$@"
