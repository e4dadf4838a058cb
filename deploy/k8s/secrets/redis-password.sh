#!/bin/sh
# Give the Redis of components/redis a new random password: users.acl and store.env in this folder are overwritten.
set -eu
umask 077
cd "$(dirname "$0")"
password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
# `probe` may say PING and nothing else: for the kubelet, which knows no password.
cat > users.acl <<ACL
user default off
user probe on nopass resetkeys resetchannels -@all +ping
user promptmux on #$digest ~promptmux:* resetchannels &promptmux:* +@all -@dangerous +client|setname +config|get +info
ACL
printf 'url=redis://promptmux:%s@promptmux-redis:6379/0\n' "$password" > store.env
echo "new password in users.acl and store.env; servers and Redis take it with the next kubectl apply" >&2
