#!/bin/sh
# tools.sh — sees that what makes packages is there, of the versions that were tried: under target/tools, not on this machine.
set -eu
cd "$(dirname "$0")/../.."
tools=$PWD/target/tools
for tool in cargo-deb@3.8.0 cargo-generate-rpm@0.21.1; do
    name=${tool%@*} version=${tool#*@}
    [ "$(cat "$tools/$name.version" 2>/dev/null)" = "$version" ] && continue
    echo "tools.sh: installing $tool" >&2
    ${CARGO:-cargo} install --quiet --locked --root "$tools" --target-dir "$tools/build" "$tool"
    echo "$version" >"$tools/$name.version"
done
rm -rf "$tools/build"
