#!/bin/sh
# all.sh — everything that is shipped, into target/package/: static binaries, .deb and .rpm for x86-64 and aarch64, an OCI image layout of both, SHA256SUMS.
# X86_64=FILE and AARCH64=FILE take binaries that are there already.
set -eu
cd "$(dirname "$0")/../.."
out=$PWD/target/package
stage=$out/stage
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
x86_64=${X86_64:-$(sh deploy/package/static.sh x86_64)}
aarch64=${AARCH64:-$(sh deploy/package/static.sh aarch64)}
rm -rf "$out"
mkdir -p "$stage/man" "$stage/completions"

# What of the packages the binary itself makes. The one that runs on this machine is asked.
case $(uname -m) in
    aarch64) here=$aarch64 ;;
    *) here=$x86_64 ;;
esac
"$here" man --dir "$stage/man"
gzip --no-name -9 "$stage"/man/*
"$here" completions bash >"$stage/completions/tollgate"
"$here" completions zsh >"$stage/completions/_tollgate"
"$here" completions fish >"$stage/completions/tollgate.fish"

PATH=$PWD/target/tools/bin:$PATH
for arch in x86_64 aarch64; do
    eval "binary=\$$arch"
    target=$arch-unknown-linux-gnu
    install -m755 "$binary" "$out/tollgate-$version-$arch"
    install -m755 "$binary" "$stage/tollgate"
    cargo-deb deb --quiet --no-build --no-strip --target "$target" --output "$out/"
    cargo-generate-rpm generate-rpm --auto-req disabled --arch "$arch" --output "$out/"
done
sh deploy/package/oci.sh "$out/oci" "$version" "amd64=$x86_64" "arm64=$aarch64"
tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory "$out/oci" --file "$out/tollgate-$version-oci.tar" .
rm -rf "$stage"
(cd "$out" && sha256sum tollgate* >SHA256SUMS && cat SHA256SUMS)
