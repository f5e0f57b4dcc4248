//! `/etc/resolv.conf` and `/etc/hosts`: read when they change, and kept as they were while they make no sense.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str;

use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::parse_resolv_conf;

/// A larger file is not what it should be.
const LARGEST: u64 = 16 << 20;

/// Whom to ask, and what to complete names with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers {
    /// Asked in this order.
    pub addresses: Vec<SocketAddr>,
    /// Domains that short names are looked for in.
    pub search: Vec<Name>,
    /// A name with fewer dots is short.
    pub ndots: usize,
}

impl Servers {
    /// What to ask for where `name` is wanted, one after the other, each when the one before does not exist. A name that is not short is
    /// never completed: where it is gone, a namesake in a search domain would get its traffic.
    ///
    /// # Errors
    /// When it is no name.
    pub fn candidates(&self, name: &str) -> Result<Vec<Name>, ProtoError> {
        let mut whole = Name::from_utf8(name)?;
        whole.set_fqdn(true);
        let short = !name.ends_with('.') && name.matches('.').count() < self.ndots.max(1);
        let mut candidates = Vec::new();
        if short {
            let relative = Name::from_utf8(name)?;
            for domain in &self.search {
                let mut candidate = relative.clone().append_domain(domain)?;
                candidate.set_fqdn(true);
                candidates.push(candidate);
            }
        }
        candidates.push(whole);
        Ok(candidates)
    }
}

/// What the hosts file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    addresses: HashMap<String, Vec<IpAddr>>,
}

impl Hosts {
    /// The addresses of a name, of both families; `None` where the file does not name it.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let found = self.addresses.get(&name.to_ascii_lowercase());
        found.map(Vec::as_slice)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let mut hosts = Self::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            // Some systems have addresses with zones in it, which lead nowhere from here.
            let Some(Ok(address)) = words.next().map(str::parse) else {
                continue;
            };
            for name in words {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                hosts.addresses.entry(name).or_default().push(address);
            }
        }
        match hosts.addresses.is_empty() {
            true => Err("it names no host".to_owned()),
            false => Ok(hosts),
        }
    }
}

/// What a look at the files found.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Other servers, or other domains.
    Servers(Servers),
    /// Other hosts.
    Hosts(Hosts),
    /// A file has changed and makes no sense, or has gone: what it said before stays.
    Kept {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The two files, each as it was last seen.
#[derive(Debug)]
pub struct Files {
    /// `None` where the configuration names the servers.
    resolv_conf: Option<Followed>,
    hosts: Followed,
}

impl Files {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(resolv_conf: Option<&Path>, hosts: &Path) -> Self {
        Self {
            resolv_conf: resolv_conf.map(Followed::new),
            hosts: Followed::new(hosts),
        }
    }

    /// What has changed since the last look. A file that was not written is not read.
    pub fn look(&mut self) -> Vec<Change> {
        let servers = self.resolv_conf.as_mut().and_then(|file| {
            file.look(|bytes| match parse_resolv_conf(bytes) {
                Ok((config, options)) => {
                    let servers = config.name_servers.iter();
                    let domain = config.domain.filter(|_| config.search.is_empty());
                    Ok(Change::Servers(Servers {
                        addresses: servers.map(|at| SocketAddr::new(at.ip, 53)).collect(),
                        search: config.search.into_iter().chain(domain).collect(),
                        ndots: options.ndots,
                    }))
                }
                Err(error) => Err(error.to_string()),
            })
        });
        let hosts = self
            .hosts
            .look(|bytes| Hosts::parse(bytes).map(Change::Hosts));
        servers.into_iter().chain(hosts).collect()
    }
}

/// A file that others write.
#[derive(Debug)]
struct Followed {
    path: PathBuf,
    mark: Option<Result<Mark, io::ErrorKind>>,
    /// What it said when it last made sense.
    good: Option<Vec<u8>>,
    makes_sense: bool,
}

/// What changes with every write, and with every file that takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    file: (u64, u64),
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Followed {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            mark: None,
            good: None,
            makes_sense: true,
        }
    }

    /// What it says, if it says something new.
    fn look(&mut self, parse: impl FnOnce(&[u8]) -> Result<Change, String>) -> Option<Change> {
        let metadata = fs::metadata(&self.path);
        let mark = metadata.as_ref().map(Mark::of).map_err(io::Error::kind);
        if self.mark.replace(mark) == Some(mark) {
            return None;
        }
        let read = metadata.and_then(|metadata| self.read(&metadata));
        if self.makes_sense && read.as_ref().ok() == self.good.as_ref() && read.is_ok() {
            return None; // written anew with the same words
        }
        let parsed = read
            .map_err(|error| error.to_string())
            .and_then(|bytes| parse(&bytes).map(|change| (change, bytes)));
        self.makes_sense = parsed.is_ok();
        Some(match parsed {
            Ok((change, bytes)) => {
                self.good = Some(bytes);
                change
            }
            Err(why) => Change::Kept {
                path: self.path.clone(),
                why,
            },
        })
    }

    fn read(&self, metadata: &Metadata) -> io::Result<Vec<u8>> {
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file")); // to open a FIFO would be to wait
        }
        let mut bytes = Vec::new();
        let file = File::open(&self.path)?;
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST {
            return Err(io::Error::other("it is too large"));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A directory with both files, and who follows them.
    struct Etc {
        folder: TempDir,
        files: Files,
    }

    impl Etc {
        fn new(resolv_conf: &str, hosts: &str) -> Self {
            let folder = TempDir::new().unwrap();
            let path = |name| folder.path().join(name);
            let files = Files::new(Some(&path("resolv.conf")), &path("hosts"));
            let mut etc = Self { folder, files };
            etc.replace("resolv.conf", resolv_conf);
            etc.replace("hosts", hosts);
            assert_eq!(etc.files.look().len(), 2);
            etc
        }

        /// As those do who know that others read.
        fn replace(&mut self, name: &str, text: &str) {
            let new = self.folder.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, self.folder.path().join(name)).unwrap();
        }

        fn kept(&mut self) -> Vec<String> {
            let changes = self.files.look().into_iter();
            let why = changes.map(|change| match change {
                Change::Kept { path, why } => {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    format!("{name}: {why}")
                }
                other => panic!("{other:?}"),
            });
            why.collect()
        }

        fn servers(&mut self) -> Servers {
            match self.files.look().pop() {
                Some(Change::Servers(servers)) => servers,
                other => panic!("{other:?}"),
            }
        }

        fn hosts(&mut self) -> Hosts {
            match self.files.look().pop() {
                Some(Change::Hosts(hosts)) => hosts,
                other => panic!("{other:?}"),
            }
        }
    }

    const GOOD: &str = "nameserver 10.0.0.2\nsearch example.internal\n";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn files_that_nobody_writes_are_not_read() {
        let mut etc = Etc::new(GOOD, "10.0.0.9 cp\n");
        assert_eq!(etc.files.look(), []);
        // Renamed away and back the file has another mark, and the same words.
        etc.replace("resolv.conf", GOOD);
        assert_eq!(etc.files.look(), []);
    }

    #[test]
    fn other_servers_are_taken() {
        let mut etc = Etc::new(GOOD, "10.0.0.9 cp\n");
        let text = "# by hand\nnameserver 10.0.0.3\nnameserver fd00:ec2::253\noptions ndots:2\n";
        etc.replace("resolv.conf", text);
        let servers = etc.servers();
        let expected = ["10.0.0.3:53", "[fd00:ec2::253]:53"].map(|at| at.parse().unwrap());
        assert_eq!(servers.addresses, expected);
        assert_eq!(servers.ndots, 2);
        fs::write(etc.folder.path().join("resolv.conf"), GOOD).unwrap();
        assert_eq!(
            etc.servers().search,
            [Name::from_ascii("example.internal").unwrap()]
        );
    }

    #[test]
    fn files_without_sense_are_kept_as_they_were_and_said_once() {
        let mut etc = Etc::new(GOOD, "10.0.0.9 cp\n");
        for (file, broken) in [
            ("resolv.conf", ""),
            ("resolv.conf", "nameserver\n"),
            ("resolv.conf", "search example.internal\n"),
            ("hosts", ""),
            ("hosts", "# nothing\n"),
            ("hosts", "cp 10.0.0.9\n"),
        ] {
            etc.replace(file, broken);
            let kept = etc.kept();
            assert!(kept.len() == 1 && kept[0].starts_with(file), "{kept:?}");
            assert_eq!(etc.files.look(), [], "{file} {broken:?}");
        }
        fs::remove_file(etc.folder.path().join("hosts")).unwrap();
        fs::remove_file(etc.folder.path().join("resolv.conf")).unwrap();
        assert_eq!(etc.kept().len(), 2);
        assert_eq!(etc.files.look(), []);
        etc.replace("resolv.conf", GOOD);
        assert_eq!(etc.servers().addresses.len(), 1, "said to be back");
        fs::create_dir(etc.folder.path().join("hosts")).unwrap();
        assert_eq!(etc.kept(), ["hosts: it is no file"]);
    }

    #[test]
    fn binary_hosts_are_kept_as_they_were() {
        let mut etc = Etc::new(GOOD, "10.0.0.9 cp\n");
        fs::write(etc.folder.path().join("hosts"), [0x31, 0xff, 0xfe]).unwrap();
        assert_eq!(etc.kept().len(), 1);
    }

    #[test]
    fn hosts_are_found_by_each_of_their_names() {
        let mut etc = Etc::new(GOOD, "10.0.0.9 cp\n");
        etc.replace(
            "hosts",
            "127.0.0.1 localhost\n10.0.0.9\tCP.example. cp # main\nfe80::1%lo0 zoned\nfd00::9 cp\n",
        );
        let hosts = etc.hosts();
        let both = [ip("10.0.0.9"), ip("fd00::9")];
        assert_eq!(hosts.addresses("cp"), Some(&both[..]));
        assert_eq!(hosts.addresses("cp.EXAMPLE."), Some(&both[..1]));
        assert_eq!(hosts.addresses("zoned"), None);
        assert_eq!(hosts.addresses("main"), None);
    }

    #[test]
    fn only_short_names_are_completed() {
        let names = |texts: &[&str]| -> Vec<Name> {
            let names = texts.iter().map(|text| Name::from_ascii(text).unwrap());
            names.collect()
        };
        let servers = |ndots| Servers {
            addresses: Vec::new(),
            search: names(&["one.example", "two.example."]),
            ndots,
        };
        for (ndots, name, expected) in [
            (1, "cp", &["cp.one.example.", "cp.two.example.", "cp."][..]),
            (1, "cp.", &["cp."]),
            (1, "cp.internal", &["cp.internal."]),
            (
                2,
                "cp.internal",
                &[
                    "cp.internal.one.example.",
                    "cp.internal.two.example.",
                    "cp.internal.",
                ],
            ),
            (0, "cp", &["cp.one.example.", "cp.two.example.", "cp."]),
        ] {
            let candidates = servers(ndots).candidates(name).unwrap();
            assert_eq!(candidates, names(expected), "{name} with ndots {ndots}");
            assert!(candidates.iter().all(Name::is_fqdn));
        }
        assert!(servers(1).candidates(&"x".repeat(64)).is_err());
    }
}
