#!/bin/sh
# Make docker/secrets, which compose.yaml hands to its containers: API keys, Redis's users, Grafana's password.
# Prints the two keys that people need, once. Makes nothing where there are secrets already.
# The keys are made by the image; PROMPTMUX=promptmux has an installed promptmux make them.
set -eu
cd "${1:-$(dirname "$0")}"
if [ -e secrets ]; then
  echo "$PWD/secrets is there already: remove it to make new ones, then start everything anew" >&2
  exit 1
fi
made=$(mktemp -d "$PWD/secrets.XXXXXX")  # for this user alone: containers see the files they are given, others none
trap 'rm -rf "$made"' EXIT

key() {  # name, scope: prints the key, and keeps its hash
  if [ -n "${PROMPTMUX:-}" ]; then
    "$PROMPTMUX" key "$1" --scope "$2" --file "$made/api-keys"
  else
    docker run --rm --network none --read-only --user "$(id -u):$(id -g)" --volume "$made:/secrets" \
      "${PROMPTMUX_IMAGE:-promptmux:${PROMPTMUX_TARGET:-cpu}}" key "$1" --scope "$2" --file /secrets/api-keys
  fi
}

password() {
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

web=$(key web infer)
ops=$(key ops admin)
metrics=$(key prometheus metrics)
printf %s "$metrics" > "$made/metrics-key"
redis=$(password)
# `default` is off, but with its rights: as that user Redis reads its log, and what it may not do is lost.
cat > "$made/redis.acl" <<END
user default off resetpass ~* &* +@all
user health on nopass -@all +ping
user promptmux on >$redis ~promptmux:* resetchannels &promptmux:* +@all -@dangerous +client|setname +config|get +info
END
cat > "$made/server.toml" <<END
store = "redis://promptmux:$redis@redis:6379/0"
END
password > "$made/grafana-password"
chmod 644 "$made"/*  # each container has a user of its own, and sees what it is given
mv "$made" secrets
trap - EXIT
echo "key for /classify (scope infer):         $web"
echo "key for publish and tasks (scope admin): $ops"
