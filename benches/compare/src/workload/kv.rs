//! Single-key puts and gets.

use std::sync::Arc;

use anyhow::ensure;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{RangeRequest, RangeResponse};

use super::Bench;
use crate::cluster::Via;
use crate::data::{self, Random, Values};
use crate::grpc::{Caller, Rpc};
use crate::load::{Step, Worker};

const GET_VALUE_BYTES: usize = 256;

pub async fn put(bench: &mut Bench<'_>, value_bytes: usize) -> anyhow::Result<()> {
    let keys: Arc<[Bytes]> = (0..bench.args.scale.put_keys).map(data::key).collect();
    for &clients in &bench.args.clients {
        let pool = bench.pool(clients).await?;
        let before = bench.revision().await?;
        let workers = (0..clients)
            .map(|client| Put {
                caller: pool.caller(client),
                keys: Arc::clone(&keys),
                values: bench.values.clone(),
                random: Random::new(client as u64),
                value_bytes,
                newest: before,
            })
            .collect();
        let (_, ops) = bench.measure(workers).await?;
        bench.check_writes(before, ops).await?;
    }
    Ok(())
}

struct Put {
    caller: Caller,
    keys: Arc<[Bytes]>,
    values: Values,
    random: Random,
    value_bytes: usize,
    newest: i64,
}

impl Worker for Put {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let key = self.keys[self.random.below(self.keys.len() as u64) as usize].clone();
        let value = self.values.cut(&mut self.random, self.value_bytes);
        let revision = super::put(&mut self.caller, key, value).await?;
        ensure!(revision > self.newest, "revision {revision} after {}", self.newest);
        self.newest = revision;
        Ok(Step::Done)
    }
}

pub async fn get(bench: &mut Bench<'_>, via: Via, serializable: bool) -> anyhow::Result<()> {
    bench
        .load(bench.args.scale.get_keys, GET_VALUE_BYTES, data::key)
        .await?;
    let keys: Arc<[Bytes]> = (0..bench.args.scale.get_keys).map(data::key).collect();
    for &clients in &bench.args.clients {
        let pool = bench.pool_via(via, clients).await?;
        let workers = (0..clients)
            .map(|client| Get {
                caller: pool.caller(client),
                keys: Arc::clone(&keys),
                random: Random::new(client as u64),
                serializable,
            })
            .collect();
        bench.measure(workers).await?;
    }
    Ok(())
}

struct Get {
    caller: Caller,
    keys: Arc<[Bytes]>,
    random: Random,
    serializable: bool,
}

impl Worker for Get {
    async fn step(&mut self) -> anyhow::Result<Step> {
        let key = &self.keys[self.random.below(self.keys.len() as u64) as usize];
        let request = RangeRequest {
            key: key.clone(),
            serializable: self.serializable,
            ..Default::default()
        };
        let response: RangeResponse = self.caller.unary(Rpc::Range, &request).await?;
        let [kv] = response.kvs.as_slice() else {
            anyhow::bail!("{} pairs for one key", response.kvs.len())
        };
        ensure!(
            kv.key == *key && kv.value.len() == GET_VALUE_BYTES,
            "the answer to a get is another pair"
        );
        Ok(Step::Done)
    }
}
