//! Names that members agree on without talking: ids are hashes of what all of them were told at the start.
//!
//! The sums are etcd's, so that a cluster started with the same settings has the same ids.

use sha1::{Digest, Sha1};

/// Id of a founding member: its peer URLs and the cluster's token.
pub fn member_id<'a>(peer_urls: impl IntoIterator<Item = &'a str>, token: &str) -> u64 {
    let mut urls: Vec<_> = peer_urls.into_iter().collect();
    urls.sort_unstable();
    let mut sum = Sha1::new();
    for url in urls {
        sum.update(url);
    }
    sum.update(token);
    first_eight(sum)
}

/// Id of a member that is added to a cluster: its peer URLs and the time, so that each time it is another.
pub fn added_member_id<'a>(peer_urls: impl IntoIterator<Item = &'a str>, unix_secs: u64) -> u64 {
    member_id(peer_urls, &unix_secs.to_string())
}

/// Id of the cluster that these members found.
pub fn cluster_id(member_ids: impl IntoIterator<Item = u64>) -> u64 {
    let mut ids: Vec<_> = member_ids.into_iter().collect();
    ids.sort_unstable();
    let mut sum = Sha1::new();
    for id in ids {
        sum.update(id.to_be_bytes());
    }
    first_eight(sum)
}

fn first_eight(sum: Sha1) -> u64 {
    let digest = sum.finalize();
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_etcds() {
        let member = member_id(["http://localhost:2380"], "etcd-cluster");
        assert_eq!(format!("{member:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id([member])), "cdf818194e3a8c32");

        let member = member_id(["http://127.0.0.1:20151"], "etcd-cluster");
        assert_eq!(format!("{member:x}"), "3a9c02f9909f586a");
        assert_eq!(format!("{:x}", cluster_id([member])), "93a3778aa8e6db07");
    }

    #[test]
    fn added_members_have_ids_of_url_and_time() {
        let member = added_member_id(["http://b:2", "http://a:1"], 1_700_000_000);
        assert_eq!(format!("{member:x}"), "8fa6c5444a914e68");
    }

    #[test]
    fn order_does_not_matter() {
        assert_eq!(
            member_id(["http://b:1", "http://a:1"], "t"),
            member_id(["http://a:1", "http://b:1"], "t")
        );
        assert_eq!(cluster_id([2, 1]), cluster_id([1, 2]));
        assert_ne!(member_id(["http://a:1"], "t"), member_id(["http://a:1"], "u"));
    }
}
