//! `--initial-cluster`: who founds the cluster, and whether we are one of them.
//!
//! Only a member without data asks. The checks, their order and texts are etcd's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::identity::{cluster_id, member_id};
use crate::config::{ClusterState, Config, QUORATE_VERSION, Url};

/// How long names in URLs are looked up again before a mismatch is taken for granted: DNS may come up after us.
pub const RESOLVE_PATIENCE: Duration = Duration::from_secs(30);
const RESOLVE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("error setting up initial cluster: {0}")]
    Url(String),
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NotListed(String),
    #[error(
        "--initial-cluster has {missing} but missing from --initial-advertise-peer-urls={advertised} ({difference})"
    )]
    NotAdvertised {
        missing: String,
        advertised: String,
        difference: String,
    },
    #[error("--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={expected}")]
    NotInCluster { missing: String, expected: String },
    #[error("failed to resolve {advertised} to match --initial-cluster={expected} ({difference})")]
    Unresolved {
        advertised: String,
        expected: String,
        difference: String,
    },
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    #[error("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs")]
    NobodyToAsk,
    #[error("--initial-cluster names {0} members; more than one is not yet supported by Quorate {QUORATE_VERSION}")]
    NotAlone(usize),
}

/// The cluster that is about to be founded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCluster {
    pub cluster_id: u64,
    /// Ours.
    pub member_id: u64,
    /// All of them, by name, with sorted URLs.
    pub members: Vec<FoundingMember>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundingMember {
    pub id: u64,
    pub name: String,
    pub peer_urls: Vec<Url>,
}

/// Addresses of a host name.
pub type Resolve<'a> = &'a dyn Fn(&str) -> io::Result<Vec<IpAddr>>;

/// The machine's own way to look up names. Blocks.
pub fn system_resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Checks the settings against each other and computes everybody's id. May block for as long as `patience` while
/// names don't resolve, so it belongs before the runtime or onto a blocking thread.
pub fn found(config: &Config, resolve: Resolve<'_>, patience: Duration) -> Result<InitialCluster, Error> {
    let listed = parse(&config.initial_cluster)?;
    let ours = listed
        .get(&config.name)
        .ok_or_else(|| Error::NotListed(config.name.clone()))?;
    compare_own_urls(config, ours, resolve, patience)?;

    let all: Vec<_> = listed.values().flatten().collect();
    if all.iter().collect::<BTreeSet<_>>().len() != all.len() {
        let pairs = listed
            .iter()
            .flat_map(|(name, urls)| pairs(name, urls))
            .collect::<BTreeSet<_>>();
        return Err(Error::DuplicateUrl(pairs.into_iter().collect::<Vec<_>>().join(",")));
    }
    if listed.len() > 1 {
        return Err(Error::NotAlone(listed.len()));
    }
    if config.initial_cluster_state == ClusterState::Existing {
        return Err(Error::NobodyToAsk); // we'd be joining nobody but ourselves
    }

    let token = &config.initial_cluster_token;
    let members: Vec<_> = listed
        .iter()
        .map(|(name, urls)| FoundingMember {
            id: member_id(urls.iter().map(|url| url.raw.as_str()), token),
            name: name.clone(),
            peer_urls: urls.clone(),
        })
        .collect();
    let own = members.iter().find(|member| member.name == config.name);
    let member_id = own
        .map(|member| member.id)
        .ok_or_else(|| Error::NotListed(config.name.clone()))?;
    Ok(InitialCluster {
        cluster_id: cluster_id(members.iter().map(|member| member.id)),
        member_id,
        members,
    })
}

/// `name=url` pairs; a name may come up several times.
fn parse(text: &str) -> Result<BTreeMap<String, Vec<Url>>, Error> {
    let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        texts.entry(name).or_default().push(url);
    }
    let mut members = BTreeMap::new();
    for (name, urls) in texts {
        let mut parsed = urls
            .into_iter()
            .map(Url::parse)
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::Url)?;
        parsed.sort();
        members.insert(name.to_owned(), parsed);
    }
    Ok(members)
}

fn pairs<'a>(name: &'a str, urls: &'a [Url]) -> impl Iterator<Item = String> + 'a {
    urls.iter().map(move |url| format!("{name}={url}"))
}

/// What we advertise and what the cluster was told about us must be the same addresses, if not the same text.
fn compare_own_urls(config: &Config, listed: &[Url], resolve: Resolve<'_>, patience: Duration) -> Result<(), Error> {
    let advertised = &config.initial_advertise_peer_urls;
    let Err(difference) = same_addresses(advertised, listed, resolve, patience) else {
        return Ok(());
    };

    let without = |these: &[Url], those: &[Url]| {
        let missing = these.iter().filter(|url| !those.contains(url));
        missing.map(Url::to_string).collect::<Vec<_>>()
    };
    let advertised_text = texts(advertised).join(",");
    let missing = without(listed, advertised);
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(|url| format!("{}={url}", config.name)).collect();
        return Err(Error::NotAdvertised {
            missing: missing.join(","),
            advertised: advertised_text,
            difference,
        });
    }
    let expected = pairs(&config.name, advertised).collect::<Vec<_>>().join(",");
    let missing = without(advertised, listed);
    if !missing.is_empty() {
        return Err(Error::NotInCluster {
            missing: missing.join(","),
            expected,
        });
    }
    Err(Error::Unresolved {
        advertised: advertised_text,
        expected,
        difference,
    })
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

/// `Err` tells the first difference.
fn same_addresses(ours: &[Url], theirs: &[Url], resolve: Resolve<'_>, patience: Duration) -> Result<(), String> {
    if ours.len() != theirs.len() {
        return Err(format!("len({}) != len({})", go_list(ours), go_list(theirs)));
    }
    if ours == theirs {
        return Ok(());
    }
    let deadline = Instant::now() + patience;
    let resolved = |urls: &[Url]| -> Result<Vec<String>, String> {
        let mut urls = urls
            .iter()
            .map(|url| resolved_url(url, resolve, deadline))
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        Ok(urls)
    };
    let (ours, theirs) = (resolved(ours)?, resolved(theirs)?);
    match ours.iter().zip(&theirs).find(|(our, their)| our != their) {
        Some((our, their)) => Err(format!("resolved urls: {our:?} != {their:?}")),
        None => Ok(()),
    }
}

/// As Go prints a list of strings.
fn go_list(urls: &[Url]) -> String {
    let quoted: Vec<_> = urls.iter().map(|url| format!("{:?}", url.raw)).collect();
    format!("[{}]", quoted.join(" "))
}

/// The URL with an address in place of a name. `localhost` stays, as in etcd.
fn resolved_url(url: &Url, resolve: Resolve<'_>, deadline: Instant) -> Result<String, String> {
    if url.scheme.is_unix() || url.host == "localhost" || url.ip().is_some() {
        return Ok(url.raw.clone());
    }
    loop {
        let reason = match resolve(&url.host) {
            Ok(addresses) => match addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()) {
                Some(address) => {
                    let scheme = if url.is_tls() { "https" } else { "http" };
                    let address = std::net::SocketAddr::new(*address, url.port);
                    return Ok(format!("{scheme}://{address}"));
                }
                None => format!("lookup {}: no such host", url.host),
            },
            Err(error) => format!("lookup {}: {error}", url.host),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(reason);
        }
        std::thread::sleep(RESOLVE_PAUSE.min(left));
    }
}

#[cfg(test)]
mod tests;
