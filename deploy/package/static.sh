#!/bin/sh
# static.sh x86_64|aarch64 — builds the relay as one file that needs no library of the machine it runs on, and prints where it is.
#
# Rust's own standard library for the other architecture comes with rustup (`rustup target add`). Where it is not there, Debian's compiler is taken, which has it
# as a package: in a root of its own under target/, made once (about 1.2 GB; needs root and the network), so that nothing of it touches this machine.
set -eu
cd "$(dirname "$0")/../.."
arch=$1
target=$arch-unknown-linux-gnu
flags="-C target-feature=+crt-static"
cargo=${CARGO:-cargo}
here=$(uname -m)
# Debian 13 with its backports: the oldest suite whose rustc is as new as Cargo.toml asks.
suite=trixie mirror=http://deb.debian.org/debian

there() { [ -n "$(find "$(rustc --print target-libdir --target "$1")" -name 'libstd-*.rlib' 2>/dev/null)" ]; }

# What a panic's lines are found by takes two thirds of the file: compressed, which the relay itself can read.
out=target/static/tollgate-$arch
finish() {
    mkdir -p target/static
    "$2"objcopy --compress-debug-sections=zlib "$1" "$out"
    echo "$out"
}

say() { echo "static.sh: $*" >&2; }

if [ "$arch" = "$here" ] || there "$target"; then
    prefix=
    if [ "$arch" != "$here" ]; then
        prefix=$arch-linux-gnu-
        case $arch in x86_64) libc=amd64 ;; *) libc=arm64 ;; esac
        sh integration/need.sh "$arch-linux-gnu-gcc:gcc-$(echo "$arch" | tr _ -)-linux-gnu libc6-dev-$libc-cross" >&2
        upper=$(echo "$target" | tr a-z- A-Z_)
        export "CARGO_TARGET_${upper}_LINKER=$arch-linux-gnu-gcc" "CC_$(echo "$target" | tr - _)=$arch-linux-gnu-gcc"
    fi
    RUSTFLAGS=$flags $cargo build --locked --release --bin tollgate --target "$target" >&2
    finish "target/$target/release/tollgate" "$prefix"
    exit
fi

[ "$arch $here" = "aarch64 x86_64" ] || { say "no way is known here to build for $arch on $here: rustup target add $target"; exit 1; }
[ "$(id -u)" = 0 ] || { say "no standard library for $arch: rustup target add $target, or run this as root to take Debian's"; exit 1; }
sh integration/need.sh mmdebstrap:mmdebstrap unshare:util-linux >&2
root=$PWD/target/cross/root
if [ ! -e "$root/made" ]; then
    say "making $root with Debian's cross compiler"
    rm -rf "$root"
    mkdir -p "$root"
    # The compiler runs here and is this machine's; of the other architecture only the standard library is unpacked, without what it depends on.
    mmdebstrap --quiet --variant=apt --mode=root --architectures=amd64,arm64 \
        --include=ca-certificates,gcc,libc6-dev,gcc-aarch64-linux-gnu,libc6-dev-arm64-cross \
        --customize-hook="chroot \"\$1\" apt-get install -qq -y --no-install-recommends -t $suite-backports rustc cargo" \
        --customize-hook="chroot \"\$1\" sh -c 'cd /tmp && apt-get download -qq libstd-rust-dev:arm64/$suite-backports && dpkg-deb -x libstd-rust-dev_*_arm64.deb / && rm libstd-rust-dev_*'" \
        $suite "$root" "deb $mirror $suite main" "deb $mirror $suite-backports main" >&2
    touch "$root/made"
fi
# What cargo needs of the network it has from here: inside there is none.
$cargo fetch --locked --target "$target" >&2
mkdir -p "$root/src" "$root/cargo" "$root/target" target/cross/out
inside='
    mount --bind "$PWD" "$1/src" && mount -o remount,bind,ro "$1/src"
    mount --bind "$2/registry" "$1/cargo/registry"
    mount --bind target/cross/out "$1/target"
    mount -t proc proc "$1/proc"
    exec chroot "$1" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp CARGO_HOME=/cargo CARGO_TARGET_DIR=/target RUSTFLAGS="$4" \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
        sh -euc "cargo build --manifest-path /src/Cargo.toml --offline --locked --release --bin tollgate --target $3
            aarch64-linux-gnu-objcopy --compress-debug-sections=zlib /target/$3/release/tollgate /target/tollgate"'
mkdir -p "$root/cargo/registry"
unshare --mount --net sh -euc "$inside" sh "$root" "${CARGO_HOME:-$HOME/.cargo}" "$target" "$flags" >&2
mkdir -p target/static
mv target/cross/out/tollgate "$out"
echo "$out"
