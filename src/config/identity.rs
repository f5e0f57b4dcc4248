//! What a relay is called where nothing is configured.

use std::sync::Arc;

/// Longest name.
const LONGEST: usize = 64;

/// The name of this machine, and which one of that name: machines that were made from one image often share their host name.
pub(super) fn relay_id() -> Arc<str> {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let machine = std::fs::read_to_string("/etc/machine-id").ok();
    compose(&host, machine.as_deref()).into()
}

/// The host name, `-` and eight digits that stand for the machine's id, where it has one. What may not stand in a name becomes `-`.
fn compose(host: &str, machine_id: Option<&str>) -> String {
    // systemd writes the word while the machine has not got an id yet (machine-id(5)).
    let machine_id = machine_id
        .map(str::trim)
        .filter(|id| !id.is_empty() && *id != "uninitialized");
    let suffix = machine_id.map_or(String::new(), |id| {
        format!("-{:08x}", crc32c::crc32c(id.as_bytes()))
    });
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
            c
        } else {
            '-'
        }
    };
    let host = if host.is_empty() { "relay" } else { host };
    let mut name: String = host.chars().map(plain).collect();
    name.truncate(LONGEST - suffix.len());
    name + &suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_one_name_are_told_apart_by_their_ids() {
        let one = compose("relay", Some("0f1e2d3c4b5a69788796a5b4c3d2e1f0\n"));
        assert_eq!(
            one,
            compose("relay", Some("0f1e2d3c4b5a69788796a5b4c3d2e1f0"))
        );
        assert_ne!(
            one,
            compose("relay", Some("1f1e2d3c4b5a69788796a5b4c3d2e1f0"))
        );
        assert!(one.starts_with("relay-") && one.len() == 14, "{one}");
        // The check value of CRC-32C.
        assert_eq!(compose("a", Some("123456789")), "a-e3069283");
    }

    #[test]
    fn a_machine_without_an_id_has_its_host_name() {
        for id in [None, Some(""), Some("\n"), Some("uninitialized\n")] {
            assert_eq!(
                compose("ip-10-0-0-5.ec2.internal", id),
                "ip-10-0-0-5.ec2.internal"
            );
        }
        assert_eq!(compose("", None), "relay");
    }

    #[test]
    fn every_host_name_becomes_an_id_that_may_be_written() {
        for host in ["(none)", "my_host", "naïve", &"x".repeat(64), ""] {
            for id in [None, Some("123456789")] {
                let name = compose(host, id);
                let raw = crate::config::file::Raw::Text(name.clone());
                assert!(crate::config::addresses::relay_id(&raw).is_ok(), "{name}");
                assert_eq!(name.ends_with("-e3069283"), id.is_some(), "{name}");
            }
        }
    }
}
