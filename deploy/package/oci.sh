#!/bin/sh
# oci.sh DIRECTORY VERSION ARCHITECTURE=BINARY… — an OCI image layout of the static binaries, made without a daemon: one image per architecture (amd64, arm64)
# behind one index. The same input gives the same digests: no time and no owner of this machine is in it.
# Use it: skopeo copy oci:DIRECTORY:VERSION docker://registry/tollgate:VERSION --all
set -eu
cd "$(dirname "$0")/../.."
out=$1 version=$2
shift 2
rm -rf "$out"
mkdir -p "$out/blobs/sha256"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Puts standard input where its digest says, and prints "digest size".
blob() {
    cat >"$work/blob"
    digest=$(sha256sum <"$work/blob" | cut -d' ' -f1)
    size=$(wc -c <"$work/blob" | tr -d ' ')
    mv "$work/blob" "$out/blobs/sha256/$digest"
    echo "$digest $size"
}

# {"mediaType", "digest", "size"} of what blob printed.
descriptor() {
    printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s' "$1" "${2% *}" "${2#* }"
}

# A user of its own, by number: no account of the machine that runs it.
user=65532
manifests=
for pair; do
    arch=${pair%%=*} binary=${pair#*=}
    root=$work/$arch
    mkdir -p "$root/usr/bin" "$root/etc/tollgate" "$root/var/lib/tollgate" "$root/var/log/tollgate" "$root/run/tollgate" "$root/tmp"
    install -m755 "$binary" "$root/usr/bin/tollgate"
    install -m644 systemd/tollgate.toml "$root/etc/tollgate/tollgate.toml"
    printf 'root:x:0:0:root:/:/sbin/nologin\ntollgate:x:%s:%s:tollgate relay:/var/lib/tollgate:/sbin/nologin\n' $user $user >"$root/etc/passwd"
    printf 'root:x:0:\ntollgate:x:%s:\n' $user >"$root/etc/group"
    chmod 644 "$root/etc/passwd" "$root/etc/group"
    chmod 750 "$root/var/lib/tollgate" "$root/var/log/tollgate"
    chmod 1777 "$root/tmp"
    own() { (cd "$root" && tar --format=posix --sort=name --mtime=@0 --pax-option=delete=atime,delete=ctime --no-recursion --numeric-owner "$@"); }
    root_owned="etc etc/group etc/passwd etc/tollgate etc/tollgate/tollgate.toml run tmp usr usr/bin usr/bin/tollgate var var/lib var/log"
    # shellcheck disable=SC2086 # one word per path
    own --owner=0 --group=0 --create --file "$work/layer" $root_owned
    own --owner=$user --group=$user --append --file "$work/layer" run/tollgate var/lib/tollgate var/log/tollgate
    diff=$(sha256sum <"$work/layer" | cut -d' ' -f1)
    layer=$(gzip --no-name -9 <"$work/layer" | blob)
    config=$(
        printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":{"User":"%s:%s",' "$arch" $user $user
        printf '"ExposedPorts":{"8443/tcp":{},"9901/tcp":{}},'
        printf '"Env":["PATH=/usr/bin","STATE_DIRECTORY=/var/lib/tollgate","RUNTIME_DIRECTORY=/run/tollgate"],'
        printf '"Entrypoint":["/usr/bin/tollgate"],"Cmd":["run","--config","/etc/tollgate/tollgate.toml"],'
        printf '"Volumes":{"/var/lib/tollgate":{}},"WorkingDir":"/","StopSignal":"SIGTERM",'
        printf '"Labels":{"org.opencontainers.image.title":"tollgate","org.opencontainers.image.version":"%s","org.opencontainers.image.licenses":"Apache-2.0"}},' "$version"
        printf '"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"deploy/package/oci.sh"}]}' "$diff"
    )
    config=$(printf %s "$config" | blob)
    manifest=$(
        printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s},' "$(descriptor config.v1+json "$config")"
        printf '"layers":[%s}]}' "$(descriptor layer.v1.tar+gzip "$layer")"
    )
    manifest=$(printf %s "$manifest" | blob)
    manifests="$manifests${manifests:+,}$(descriptor manifest.v1+json "$manifest"),\"platform\":{\"architecture\":\"$arch\",\"os\":\"linux\"}}"
done
index=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$manifests" | blob)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' \
    "$(descriptor index.v1+json "$index")" "$version" >"$out/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
