#!/bin/sh
# Start Redis in the working folder, after mending the end of its log: docs/redis.md says what a power cut does to it.
set -eu
sh "$(dirname "$0")/mend-log.sh" .
exec redis-server "$(dirname "$0")/redis.conf" "$@"
