#!/bin/sh
# need.sh PROGRAM:PACKAGE… — sees that each program is there. As root on Debian what is missing is installed; else one line says what to
# install, and that is a failure. Services of the packages are not started: only our own namespaces are to see these programs run.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
for pair; do
    command -v "${pair%%:*}" >/dev/null || case " $missing " in
        *" ${pair#*:} "*) ;;
        *) missing="$missing ${pair#*:}" ;;
    esac
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing:$missing. Install with: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "missing:$missing (Debian's names of packages). Install them with this machine's package manager" >&2
    exit 1
fi
echo "installing$missing"
# dpkg asks this program before a package starts its service; 101 is no. An answer that is there already stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # one word per package
apt-get install -qq -y --no-install-recommends $missing >/dev/null ||
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing >/dev/null; }
