#!/bin/sh
# Give the Redis of components/redis a new random password: users.acl and store.env in this folder are overwritten.
set -eu
umask 077
cd "$(dirname "$0")"
password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
# `default` is off, so nobody can be it, but keeps its rights: Redis reads its log as that user, and where it lacks them
# passes over every transaction, which is every write of the store (docs/redis.md).
# `probe` may say PING and nothing else: for the kubelet, which knows no password.
cat > users.acl <<ACL
user default off resetpass ~* &* +@all
user probe on nopass resetkeys resetchannels -@all +ping
user promptmux on #$digest ~promptmux:* resetchannels &promptmux:* +@all -@dangerous +client|setname +config|get +info
ACL
printf 'url=redis://promptmux:%s@promptmux-redis:6379/0\n' "$password" > store.env
echo "new password in users.acl and store.env; servers and Redis take it with the next kubectl apply" >&2
