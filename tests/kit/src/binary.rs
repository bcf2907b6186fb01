//! Which programs a test drives.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Names another server than the one just built, so that a suite can be calibrated against a real etcd.
const UNDER_TEST: &str = "QUORATE_UNDER_TEST";
/// Names another etcd than Debian's as the reference.
const ORACLE: &str = "QUORATE_ORACLE";
const DEBIAN_ETCD: &str = "/usr/bin/etcd";
const DEBIAN_ETCDCTL: &str = "/usr/bin/etcdctl";

/// A server program and the etcd version it claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    pub path: PathBuf,
    pub version: Version,
}

/// `major.minor.patch` from the first line of `--version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Binary {
    /// The node under test: `built` (the caller's `env!("CARGO_BIN_EXE_quorate")`) unless the environment names another.
    pub fn under_test(built: &str) -> Self {
        Self::at(std::env::var(UNDER_TEST).unwrap_or_else(|_| built.to_owned()))
    }

    /// The reference: Debian's etcd unless the environment names another.
    pub fn oracle() -> Self {
        Self::at(std::env::var(ORACLE).unwrap_or_else(|_| DEBIAN_ETCD.to_owned()))
    }

    pub fn at(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        let shown = Command::new(&path)
            .arg("--version")
            .env_clear()
            .output()
            .unwrap_or_else(|error| panic!("run {} --version: {error}", path.display()));
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd Version: "))
            .and_then(Version::parse)
            .unwrap_or_else(|| panic!("{} --version shows no etcd version: {text:?}", path.display()));
        Self { path, version }
    }

    /// Whether this server has the habits of the 3.4 line, which the differences tables are about.
    pub fn is_34(&self) -> bool {
        (self.version.0, self.version.1) == (3, 4)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
        Some(Self(major, minor, patch.parse().ok()?))
    }
}

/// The `etcdctl` that tests use as an unmodified client.
pub fn etcdctl() -> PathBuf {
    PathBuf::from(std::env::var("QUORATE_ETCDCTL").unwrap_or_else(|_| DEBIAN_ETCDCTL.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(Version::parse("3.4.23\n"), Some(Version(3, 4, 23)));
        assert_eq!(Version::parse("3.7.1-rc.0"), Some(Version(3, 7, 1)));
        assert_eq!(Version::parse("3.7"), None);
        assert!(Version(3, 4, 23) < Version(3, 7, 0));
    }
}
