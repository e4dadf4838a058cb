#!/bin/sh
# Mend the end of Redis's log before Redis starts: docs/redis.md says what a power cut does to it, and why.
# usage: mend-log.sh FOLDER, which has appendonlydir. Ends with 1, and has changed nothing, where the damage is no torn
# end. MEND_AT_MOST is how many bytes may be cut off. docker/redis and deploy/k8s/components/redis have the same file.
set -eu
cd "$1"
most=${MEND_AT_MOST:-83886080}  # 80 MiB: the largest prompt file (64 MiB), and what is written beside it
log=appendonlydir

refuse() {
  echo "mend-log: $1. NOTHING WAS CHANGED, and Redis is not started: cutting here would lose acknowledged publishes." \
    "Copy $PWD/$log away, then restore a backup, or start from an empty one and publish again what servers still hold:" \
    "docs/runbooks/PromptmuxStoreHistoryLost.md" >&2
  exit 1
}

for manifest in "$log"/*.manifest; do
  [ -e "$manifest" ] || continue  # the first start of all
  if found=$(redis-check-aof "$manifest" 2>&1); then continue; fi
  echo "$found"
  torn=$(echo "$found" | sed -n 's/^AOF analyzed: filename=\(.*\), size=\([0-9]*\), ok_up_to=\([0-9]*\), .*diff=[1-9][0-9]*$/\3 \2 \1/p')
  case $torn in
    *[0-9]\ *.incr.aof) ;;
    *) refuse "redis-check-aof names no log with a torn end" ;;
  esac
  read -r whole size name <<END
$torn
END
  cut=$((size - whole))
  [ "$cut" -le "$most" ] || refuse "$cut of $size bytes of $name follow the first that is damaged, more than one write is"
  # A write that was torn has no end: where one follows, whole transactions do, which somebody was told are safe.
  if tail -c "+$((whole + 1))" "$log/$name" | tr -d '\r' | LC_ALL=C grep -aqix EXEC; then
    refuse "whole transactions follow the damage at byte $whole of $name"
  fi
  copy=$log.before-mending-$(date -u +%Y%m%dT%H%M%SZ)
  rm -rf "$log.copying"
  cp -Rp "$log" "$log.copying"
  rm -rf "$log".before-mending-*  # one copy is kept
  mv "$log.copying" "$copy"
  echo "mend-log: $cut bytes of $name are cut off; the log as it was is kept in $PWD/$copy"
  echo y | redis-check-aof --fix "$manifest"
done
