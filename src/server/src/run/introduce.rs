//! A member makes itself known: the founders to the replicated table, its name and client URLs beside its row there.
//! Clients are served afterwards, so a cluster serves nobody before a quorum of it is there.

use crate::config::Config;
use crate::member::Member;
use anyhow::Context;
use quorate_api::proto::quorate::{ClusterInit, MemberPublish};
use quorate_api::{Code, Error, Status};
use quorate_store::command::Command;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Until a leader is known nothing comes through; what timed out is proposed again after this time, for as long as it
/// takes.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits for as long as it takes the cluster to have a leader.
pub(super) async fn introduce(member: &Arc<Member>, config: &Config) -> anyhow::Result<()> {
    // Local state says what the cluster looks like only when it is not behind it.
    while let Err(error) = member.linearize().await {
        if !may_pass(&error) {
            return Err(anyhow::anyhow!(error.message)).context("find out who leads");
        }
        warn!(error = %error.message, "the cluster has no leader yet that this member can reach; waiting");
        tokio::time::sleep(PAUSE).await;
    }
    if member.store.cluster_id().is_none() {
        let init = ClusterInit {
            cluster_id: member.cluster.0,
            members: member.origin.clone(),
        };
        // Every founder says the same, and the first to be heard settles it.
        patiently(member, &Command::ClusterInit(init))
            .await
            .context("found the cluster")?;
    }
    let client_urls: Vec<String> = config.advertise_client_urls.iter().map(|url| url.raw.clone()).collect();
    let known = member.store.member(member.id);
    let same = known.is_some_and(|known| known.name == config.name && known.client_ur_ls == client_urls);
    if !same || member.store.incarnation(member.id) != Some(member.incarnation) {
        let publish = MemberPublish {
            id: member.id.0,
            name: config.name.clone(),
            client_urls,
            incarnation: member.incarnation,
        };
        patiently(member, &Command::MemberPublish(publish))
            .await
            .context("publish name and client URLs")?;
    }
    info!("member-id" = %member.id, "cluster-id" = %member.cluster, name = config.name, "published local member to cluster");
    Ok(())
}

/// What has no outcome is proposed again: both commands may be applied twice.
async fn patiently(member: &Arc<Member>, command: &Command) -> Result<(), Status> {
    loop {
        match member.propose(command).await {
            Ok(outcome) => {
                outcome.result?;
                return Ok(());
            }
            Err(error) if may_pass(&error) => {
                warn!(error = %error.message, "no quorum of the cluster answers; waiting");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What another attempt may get over; a member that is stopping does not.
fn may_pass(error: &Status) -> bool {
    matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) && error.message != Error::Stopped.text()
}
