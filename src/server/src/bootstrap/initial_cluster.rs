//! `--initial-cluster`: who is in the cluster, and whether we are one of them.
//!
//! Only a member without data asks. The checks, their order and texts are etcd's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_api::proto::etcdserverpb::Member;
use quorate_api::{ClusterId, MemberId};

use super::addresses::{Addresses, Resolve};
use super::identity::{cluster_id, member_id};
use crate::config::{Config, Url};
use crate::http::Membership;

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
}

/// The members that were listed, with the ids that they have if they are the ones who found the cluster. Everybody who
/// was given the same settings computes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCluster {
    pub cluster_id: u64,
    /// Ours.
    pub member_id: u64,
    /// All of them, by id.
    pub members: Vec<FoundingMember>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundingMember {
    pub id: u64,
    pub name: String,
    /// Sorted.
    pub peer_urls: Vec<Url>,
}

impl InitialCluster {
    /// Where the others are, sorted.
    pub fn other_urls(&self) -> Vec<Url> {
        let others = self.members.iter().filter(|member| member.id != self.member_id);
        let mut urls: Vec<_> = others.flat_map(|member| member.peer_urls.iter().cloned()).collect();
        urls.sort();
        urls
    }

    /// As members tell each other.
    pub fn membership(&self) -> Membership {
        let member = |founder: &FoundingMember| Member {
            id: founder.id,
            name: founder.name.clone(),
            peer_ur_ls: founder.peer_urls.iter().map(|url| url.raw.clone()).collect(),
            ..Default::default()
        };
        Membership {
            cluster: ClusterId(self.cluster_id),
            members: self.members.iter().map(member).collect(),
        }
    }

    pub fn member_id(&self) -> MemberId {
        MemberId(self.member_id)
    }
}

/// Checks the settings of one who founds, alone or with others. May block for as long as `patience` while names don't
/// resolve, so it belongs onto a blocking thread.
pub fn found(config: &Config, resolve: Resolve<'_>, patience: Duration) -> Result<InitialCluster, Error> {
    let (listed, ours) = parse_with_us(config)?;
    compare_own_urls(config, &ours, Addresses::new(resolve, patience))?;
    with_ids(config, listed)
}

/// Checks the settings of one who joins. What it advertises is not compared: the members were told before it started,
/// and their list counts.
pub fn join(config: &Config) -> Result<InitialCluster, Error> {
    let (listed, _) = parse_with_us(config)?;
    with_ids(config, listed)
}

type Listed = BTreeMap<String, Vec<Url>>;

fn parse_with_us(config: &Config) -> Result<(Listed, Vec<Url>), Error> {
    let listed = parse(&config.initial_cluster)?;
    match listed.get(&config.name).cloned() {
        Some(ours) => Ok((listed, ours)),
        None => Err(Error::NotListed(config.name.clone())),
    }
}

/// Refuses a URL that two have, and computes everybody's id.
fn with_ids(config: &Config, listed: Listed) -> Result<InitialCluster, Error> {
    let all: Vec<_> = listed.values().flatten().collect();
    if all.iter().collect::<BTreeSet<_>>().len() != all.len() {
        let pairs = listed
            .iter()
            .flat_map(|(name, urls)| pairs(name, urls))
            .collect::<BTreeSet<_>>();
        return Err(Error::DuplicateUrl(pairs.into_iter().collect::<Vec<_>>().join(",")));
    }
    let token = &config.initial_cluster_token;
    let mut members: Vec<_> = listed
        .into_iter()
        .map(|(name, peer_urls)| FoundingMember {
            id: member_id(peer_urls.iter().map(|url| url.raw.as_str()), token),
            name,
            peer_urls,
        })
        .collect();
    members.sort_by_key(|member| member.id);
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
fn parse(text: &str) -> Result<Listed, Error> {
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
fn compare_own_urls(config: &Config, listed: &[Url], addresses: Addresses<'_>) -> Result<(), Error> {
    let advertised = &config.initial_advertise_peer_urls;
    let Err(difference) = addresses.same(advertised, listed) else {
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

#[cfg(test)]
mod tests;
