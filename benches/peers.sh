#!/bin/sh
# Installs the relays that the benchmark compares with, where they are missing and we may; else says what to install.
# Their services are not left running: the benchmark starts its own, in namespaces.
set -eu

PATH=$PATH:/usr/sbin
packages=
[ -n "${NGINX:-}" ] || [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || packages="nginx libnginx-mod-stream"
[ -n "${HAPROXY:-}" ] || command -v haproxy >/dev/null || packages="$packages haproxy"
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "make bench compares with nginx's stream proxy and HAProxy. Install them (Debian: apt-get install $packages)" >&2
	echo "or name binaries: make bench NGINX=PATH HAPROXY=PATH" >&2
	exit 1
fi
if ! DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; then
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
fi
for package in $packages; do
	case $package in
	nginx | haproxy)
		if [ -d /run/systemd/system ]; then
			systemctl disable --now "$package" || true
		else
			service "$package" stop >/dev/null 2>&1 || true
		fi
		;;
	esac
done
