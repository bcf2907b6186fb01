//! Whether two lists of URLs mean the same places, be they written with names or with addresses.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::config::Url;

/// How long names in URLs are looked up again before a mismatch is taken for granted: DNS may come up after us.
pub const RESOLVE_PATIENCE: Duration = Duration::from_secs(30);
const RESOLVE_PAUSE: Duration = Duration::from_secs(1);

/// Addresses of a host name.
pub type Resolve<'a> = &'a dyn Fn(&str) -> io::Result<Vec<IpAddr>>;

/// The machine's own way to look up names. Blocks.
pub fn system_resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Looks up names, again and again until `deadline` for those that don't resolve. Blocks.
#[derive(Clone, Copy)]
pub(super) struct Addresses<'a> {
    resolve: Resolve<'a>,
    deadline: Instant,
}

impl<'a> Addresses<'a> {
    pub(super) fn new(resolve: Resolve<'a>, patience: Duration) -> Self {
        Self {
            resolve,
            deadline: Instant::now() + patience,
        }
    }

    /// Compares sorted lists, by their text first, so that nothing is looked up without need. `Err` tells the first
    /// difference.
    pub(super) fn same(&self, ours: &[Url], theirs: &[Url]) -> Result<(), String> {
        if ours.len() != theirs.len() {
            return Err(format!("len({}) != len({})", go_list(ours), go_list(theirs)));
        }
        if ours == theirs {
            return Ok(());
        }
        let (ours, theirs) = (self.resolved_all(ours)?, self.resolved_all(theirs)?);
        match ours.iter().zip(&theirs).find(|(our, their)| our != their) {
            Some((our, their)) => Err(format!("resolved urls: {our:?} != {their:?}")),
            None => Ok(()),
        }
    }

    fn resolved_all(&self, urls: &[Url]) -> Result<Vec<String>, String> {
        let resolved: Result<Vec<_>, _> = urls.iter().map(|url| self.resolved(url)).collect();
        let mut resolved = resolved?;
        resolved.sort();
        Ok(resolved)
    }

    /// The URL with an address in place of a name, addresses in their shortest form. `localhost` stays, as in etcd.
    fn resolved(&self, url: &Url) -> Result<String, String> {
        if url.scheme.is_unix() || url.host == "localhost" {
            return Ok(url.raw.clone());
        }
        let with = |address| format!("{}://{}", url.scheme.name(), SocketAddr::new(address, url.port));
        if let Some(address) = url.ip() {
            return Ok(with(address));
        }
        loop {
            let reason = match (self.resolve)(&url.host) {
                Ok(addresses) => match addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()) {
                    Some(address) => return Ok(with(*address)),
                    None => format!("lookup {}: no such host", url.host),
                },
                Err(error) => format!("lookup {}: {error}", url.host),
            };
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(reason);
            }
            std::thread::sleep(RESOLVE_PAUSE.min(left));
        }
    }
}

/// As Go prints a list of strings.
fn go_list(urls: &[Url]) -> String {
    let quoted: Vec<_> = urls.iter().map(|url| format!("{:?}", url.raw)).collect();
    format!("[{}]", quoted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn urls(texts: &[&str]) -> Vec<Url> {
        texts.iter().map(|text| Url::parse(text).unwrap()).collect()
    }

    fn nowhere(_: &str) -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("no such host"))
    }

    #[test]
    fn names_are_looked_up_until_they_resolve() {
        let calls = Cell::new(0);
        let resolve = |host: &str| {
            calls.set(calls.get() + 1);
            if calls.get() < 2 {
                nowhere(host)
            } else {
                Ok(vec!["10.0.0.1".parse().unwrap()])
            }
        };
        let addresses = Addresses::new(&resolve, Duration::from_secs(60));
        addresses
            .same(&urls(&["http://m1:2380"]), &urls(&["http://10.0.0.1:2380"]))
            .unwrap();
        assert_eq!(calls.get(), 2);
    }

    #[test]
    fn what_reads_the_same_is_not_looked_up() {
        let addresses = Addresses::new(&nowhere, Duration::ZERO);
        let named = urls(&["http://m1:2380"]);
        addresses.same(&named, &named).unwrap();
        let reason = addresses.same(&named, &urls(&["http://m2:2380"])).unwrap_err();
        assert_eq!(reason, "lookup m1: no such host");
    }

    #[test]
    fn an_address_has_many_spellings() {
        let addresses = Addresses::new(&nowhere, Duration::ZERO);
        let (short, long) = (urls(&["http://[::1]:1"]), urls(&["http://[0:0:0:0:0:0:0:1]:1"]));
        addresses.same(&short, &long).unwrap();
        let reason = addresses.same(&short, &urls(&["https://[::1]:1"])).unwrap_err();
        assert_eq!(reason, r#"resolved urls: "http://[::1]:1" != "https://[::1]:1""#);
    }

    #[test]
    fn local_names_resolve() {
        assert!(system_resolve("localhost").unwrap().iter().all(IpAddr::is_loopback));
    }
}
