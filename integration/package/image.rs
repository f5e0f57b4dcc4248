//! The OCI image layout: every digest followed, read by skopeo as a registry would, and its root file system run.

use std::{fs, path::PathBuf, process::Command};

use libtest_mimic::Trial;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{claim, folder, output_of, programs::binary};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("image_layout_is_whole_down_to_the_binaries", whole),
        claim("image_is_what_skopeo_copies_for_each_architecture", copied),
        claim("image_of_the_same_binaries_is_the_same_image", reproducible),
        claim("image_root_is_all_that_the_relay_needs", runs),
    ]
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
const ARCHITECTURES: [(&str, &str); 2] = [("amd64", "x86_64"), ("arm64", "aarch64")];

fn layout() -> PathBuf {
    folder().join("oci")
}

/// What a descriptor points at, if it is what the descriptor says.
#[track_caller]
fn blob(descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().expect("a descriptor");
    let hex = digest.strip_prefix("sha256:").expect("of this kind");
    let bytes = fs::read(layout().join("blobs/sha256").join(hex)).expect("the blob is there");
    assert_eq!(format!("{:x}", Sha256::digest(&bytes)), hex);
    assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64));
    bytes
}

#[track_caller]
fn parsed(descriptor: &Value) -> Value {
    serde_json::from_slice(&blob(descriptor)).expect("it is JSON")
}

/// The manifests by their architecture.
#[track_caller]
fn manifests() -> Vec<(String, Value)> {
    let text = fs::read(layout().join("index.json")).expect("there is an index");
    let index: Value = serde_json::from_slice(&text).expect("it is JSON");
    let named = &index["manifests"][0];
    assert_eq!(
        named["annotations"]["org.opencontainers.image.ref.name"],
        VERSION
    );
    let manifests = parsed(named)["manifests"].as_array().cloned();
    let manifests = manifests.expect("an index of manifests").into_iter();
    manifests
        .map(|one| {
            assert_eq!(one["platform"]["os"], "linux");
            let arch = one["platform"]["architecture"]
                .as_str()
                .expect("a platform");
            (arch.to_owned(), parsed(&one))
        })
        .collect()
}

/// Unpacks an architecture's only layer.
#[track_caller]
fn unpack(manifest: &Value) -> TempDir {
    let layers = manifest["layers"].as_array().expect("an image has layers");
    assert_eq!(layers.len(), 1);
    let folder = TempDir::new_in("/run").expect("/run is ours");
    let packed = folder.path().join("layer.tar.gz");
    fs::write(&packed, blob(&layers[0])).expect("/run is ours");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--same-owner", "--same-permissions"])
        .arg("--directory")
        .arg(folder.path())
        .arg("--file")
        .arg(&packed);
    output_of(&mut tar);
    fs::remove_file(packed).expect("/run is ours");
    folder
}

fn whole() {
    let layout_file = fs::read_to_string(layout().join("oci-layout"));
    assert_eq!(
        layout_file.expect("it is there"),
        "{\"imageLayoutVersion\":\"1.0.0\"}"
    );
    let manifests = manifests();
    let found: Vec<_> = manifests.iter().map(|(arch, _)| arch.as_str()).collect();
    assert_eq!(found, ["amd64", "arm64"]);
    for ((arch, manifest), (_, ours)) in manifests.iter().zip(ARCHITECTURES) {
        let config = parsed(&manifest["config"]);
        assert_eq!(config["architecture"], arch.as_str());
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/tollgate");
        let packed = blob(&manifest["layers"][0]);
        let folder = TempDir::new_in("/run").expect("/run is ours");
        let path = folder.path().join("layer.gz");
        fs::write(&path, packed).expect("/run is ours");
        let mut gunzip = Command::new("sh");
        gunzip.args(["-c", "gunzip <\"$0\" | sha256sum"]).arg(&path);
        let digest = output_of(&mut gunzip);
        let wanted = config["rootfs"]["diff_ids"][0].as_str().expect("a digest");
        assert_eq!(wanted.strip_prefix("sha256:"), digest.split(' ').next());
        let root = unpack(manifest);
        let inside = fs::read(root.path().join("usr/bin/tollgate")).expect("it is in there");
        assert!(
            inside == fs::read(binary(ours)).expect("it was made"),
            "{arch}: another binary"
        );
    }
}

fn copied() {
    for (arch, _) in ARCHITECTURES {
        let mut skopeo = Command::new("skopeo");
        let image = format!("oci:{}:{VERSION}", layout().display());
        skopeo.args(["--override-os=linux", &format!("--override-arch={arch}")]);
        let text = output_of(skopeo.args(["inspect", "--config", &image]));
        let config: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(config["architecture"], arch);
        let folder = TempDir::new_in("/run").expect("/run is ours");
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "--override-os=linux",
            &format!("--override-arch={arch}"),
            "copy",
        ]);
        output_of(
            skopeo
                .arg(&image)
                .arg(format!("dir:{}/copy", folder.path().display())),
        );
    }
}

fn reproducible() {
    let folder = TempDir::new_in("/run").expect("/run is ours");
    let again = folder.path().join("oci");
    let mut script = Command::new("sh");
    script
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("deploy/package/oci.sh")
        .args([&again, &PathBuf::from(VERSION)])
        .args(ARCHITECTURES.map(|(arch, ours)| format!("{arch}={}", binary(ours).display())));
    output_of(&mut script);
    let index = |path: PathBuf| fs::read_to_string(path.join("index.json")).expect("it is there");
    assert_eq!(index(again), index(layout()));
}

/// As a runtime would: its user and environment, its root and nothing else, but /proc, which all of them mount.
fn runs() {
    let manifests = manifests();
    let (_, manifest) = &manifests[0];
    let config = parsed(&manifest["config"]);
    let user = config["config"]["User"]
        .as_str()
        .expect("a user")
        .to_owned();
    let (uid, gid) = user.split_once(':').expect("and a group");
    let root = unpack(manifest);
    let inside = "mkdir \"$0/proc\" && mount -t proc proc \"$0/proc\" && exec chroot --userspec=\"$1\" \"$0\" /usr/bin/tollgate check --config /etc/tollgate/tollgate.toml";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-euc", inside])
        .arg(root.path())
        .arg(format!("{uid}:{gid}"))
        .env_clear();
    for variable in config["config"]["Env"].as_array().expect("an environment") {
        let variable = variable.as_str().and_then(|text| text.split_once('='));
        let (name, value) = variable.expect("NAME=value");
        if name != "PATH" {
            command.env(name, value);
        }
    }
    let said = output_of(&mut command);
    assert!(said.contains("/var/lib/tollgate"), "{said}");
}
