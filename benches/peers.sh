#!/bin/sh
# Installs the relays that the benchmark compares with, where they are missing and we may; else says what to install. The services of the packages
# are not started: the benchmark starts its own, in namespaces.
set -eu

PATH=$PATH:/usr/sbin
need=$(dirname "$0")/../integration/need.sh
peers=
# Debian has nginx's stream module in a package of its own.
[ -n "${NGINX:-}" ] || [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || peers="nginx:nginx ngx_stream_module:libnginx-mod-stream"
[ -n "${HAPROXY:-}" ] || peers="$peers haproxy:haproxy"
# shellcheck disable=SC2086 # one word per program
sh "$need" $peers setpriv:util-linux || {
	echo "or name binaries: make bench NGINX=PATH HAPROXY=PATH" >&2
	exit 1
}
# Without it the kernel's NAT is left out, and the report says so.
command -v iptables >/dev/null || sh "$need" nft:nftables || echo "going on without the kernel's NAT" >&2
