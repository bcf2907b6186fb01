//! Requests that no client would send. Whatever comes, the process lives and others are served.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_api::proto::etcdserverpb::request_op::Request as Op;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, Compare, DeleteRangeRequest,
    DowngradeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use quorate_kit::raw::{Raw, Windows, frame};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::support::{PUT, RANGE, TXN, WATCH, assert_serves, from_env, start};

/// Every call of the API, of services that are served and of ones that are not (yet).
const PATHS: [&str; 55] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberAdd",
    "/etcdserverpb.Cluster/MemberRemove",
    "/etcdserverpb.Cluster/MemberUpdate",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Cluster/MemberPromote",
    "/etcdserverpb.Maintenance/Alarm",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Maintenance/MoveLeader",
    "/etcdserverpb.Maintenance/Downgrade",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/AuthDisable",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/UserDelete",
    "/etcdserverpb.Auth/UserChangePassword",
    "/etcdserverpb.Auth/UserGrantRole",
    "/etcdserverpb.Auth/UserRevokeRole",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleList",
    "/etcdserverpb.Auth/RoleDelete",
    "/etcdserverpb.Auth/RoleGrantPermission",
    "/etcdserverpb.Auth/RoleRevokePermission",
    "/v3lockpb.Lock/Lock",
    "/v3lockpb.Lock/Unlock",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Proclaim",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
    "/v3electionpb.Election/Resign",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/etcdserverpb.KV/Nothing",
    "/no.such.Service/Method",
    "/",
    "/a",
];

/// A20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_utf8_header_cannot_reach_labels() {
    let mut own = start();
    let rpc = own.node.rpc();
    let put = PutRequest {
        key: "a".into(),
        ..PutRequest::default()
    };
    let mut request = Request::new(Bytes::from(put.encode_to_vec()));
    let bad = MetadataValue::try_from(b"\xff\xfe\xc3\x28".as_slice()).unwrap();
    request.metadata_mut().insert("client-api-version", bad);
    let refused = rpc.unary_request(PUT, request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: invalid client api version")
    );
    let page = quorate_kit::http::get(own.node.address(), "/metrics").unwrap();
    assert!(
        page.status == 200 && String::from_utf8(page.body).is_ok(),
        "the metrics page is not UTF-8"
    );
    assert_serves(&mut own.node).await;
}

/// A18, A21, A23 and E1: numbers that no enum has, messages whose parts are missing, names too long to store. Each is
/// answered one way or another, the process lives, and so does the next one started on what it wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_ends_the_process() {
    let mut own = start();
    let rpc = own.node.rpc();
    let range = |sort_order, sort_target| RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        sort_order,
        sort_target,
        ..RangeRequest::default()
    };
    crate::support::put_at(&rpc, "a", "1").await;
    crate::support::put_at(&rpc, "b", "1").await;
    for (order, target) in [(3, 0), (0, 5), (-1, -1), (1, i32::MAX), (i32::MIN, 0)] {
        let refused = rpc
            .unary::<RangeResponse>(RANGE, &range(order, target))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "etcdserver: invalid sort option")
        );
    }

    let op = |request| RequestOp { request: Some(request) };
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        (
            TXN,
            TxnRequest {
                success: vec![RequestOp { request: None }],
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            TXN,
            TxnRequest {
                compare: vec![Compare::default()],
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            TXN,
            TxnRequest {
                compare: vec![Compare {
                    result: 99,
                    target: -7,
                    key: "a".into(),
                    ..Compare::default()
                }],
                success: vec![
                    op(Op::RequestTxn(TxnRequest::default())),
                    op(Op::RequestRange(range(9, 9))),
                ],
                failure: vec![op(Op::RequestRange(range(9, 9)))],
            }
            .encode_to_vec(),
        ),
        // deletes a key, then puts it with its old value: the check of duplicates leaves out deletes with an open end
        (
            TXN,
            TxnRequest {
                success: vec![
                    op(Op::RequestDeleteRange(DeleteRangeRequest {
                        key: b"\0".to_vec().into(),
                        range_end: b"\0".to_vec().into(),
                        prev_kv: true,
                    })),
                    op(Op::RequestPut(PutRequest {
                        key: "a".into(),
                        ignore_value: true,
                        ..PutRequest::default()
                    })),
                ],
                ..TxnRequest::default()
            }
            .encode_to_vec(),
        ),
        // a oneof with nothing in its message
        (TXN, vec![0x12, 0x02, 0x0a, 0x00]),
        (TXN, vec![0x12, 0x02, 0x22, 0x00]),
        (
            "/etcdserverpb.Maintenance/Downgrade",
            DowngradeRequest {
                action: 99,
                version: "x".into(),
            }
            .encode_to_vec(),
        ),
        (
            "/etcdserverpb.Auth/RoleGrantPermission",
            AuthRoleGrantPermissionRequest {
                name: "r".into(),
                perm: None,
            }
            .encode_to_vec(),
        ),
        (
            "/etcdserverpb.Auth/RoleAdd",
            AuthRoleAddRequest {
                name: "n".repeat(40 << 10),
            }
            .encode_to_vec(),
        ),
        ("/v3electionpb.Election/Proclaim", Vec::new()),
        ("/v3electionpb.Election/Resign", Vec::new()),
    ];
    for (path, bytes) in hostile {
        // any answer will do
        let _ = rpc.unary_bytes(path, bytes.into()).await;
        assert_serves(&mut own.node).await;
    }
    let mut create = WatchCreateRequest {
        key: "a".into(),
        filters: vec![99, -1],
        ..WatchCreateRequest::default()
    };
    create.watch_id = i64::MIN;
    for union in [Some(RequestUnion::CreateRequest(create)), None] {
        let mut stream = rpc.bidi(WATCH, &WatchRequest { request_union: union }).await;
        if let Ok(stream) = &mut stream {
            stream.finish();
        }
        assert_serves(&mut own.node).await;
    }
    own.node.kill();
    own.node.restart();
    assert_serves(&mut own.node).await;
}

/// E1: an alarm that does not exist, or an action that is none, is answered, raises nothing and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_alarms_and_actions_change_nothing() {
    const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
    let mut own = start();
    let rpc = own.node.rpc();
    let revision = crate::support::put_at(&rpc, "a", "1").await;
    let list = AlarmRequest::default(); // GET, NONE
    for (action, alarm) in [
        (1, 99),
        (99, 1),
        (-1, -1),
        (1, -1),
        (1, 0),
        (2, 99),
        (i32::MAX, i32::MIN),
        (0, 99),
    ] {
        let request = AlarmRequest {
            action,
            member_id: 0,
            alarm,
        };
        let answer: AlarmResponse = rpc
            .unary(ALARM, &request)
            .await
            .unwrap_or_else(|status| panic!("{request:?}: {status}"));
        assert_eq!(answer.alarms, [], "{request:?}");
        assert_eq!(answer.header.unwrap().revision, revision, "{request:?}");
        let raised: AlarmResponse = rpc.unary(ALARM, &list).await.unwrap();
        assert_eq!(raised.alarms, [], "raised by {request:?}");
    }
    assert_eq!(crate::support::put_at(&rpc, "a", "2").await, revision + 1);
    own.node.kill();
    own.node.restart();
    let raised: AlarmResponse = own.node.rpc().unary(ALARM, &list).await.unwrap();
    assert_eq!(raised.alarms, [], "after a restart");
    assert_serves(&mut own.node).await;
}

/// The size of a request, up to 1.5 MiB and one byte more. Measured with etcd 3.4 and 3.7.1: a value of 1,572,840 bytes
/// under a key of one is the largest for a member whose ids encode to nine bytes (the default single node), and one
/// less for ten bytes, which is what this node goes by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_request_is_etcds() {
    const LIMIT: usize = 1_572_864;
    const LARGEST: usize = 1_572_839;
    let own = start();
    let rpc = own.node.rpc();
    let mut revision = crate::support::put_at(&rpc, "a", "1").await;
    for bytes in LIMIT - 40..=LIMIT + 1 {
        if bytes == LARGEST + 1 {
            continue; // either is right
        }
        let answer = crate::support::put(&rpc, "a", vec![b'x'; bytes]).await;
        if bytes <= LARGEST {
            revision += 1;
            assert_eq!(answer.unwrap().header.unwrap().revision, revision, "{bytes}");
        } else {
            let refused = answer.expect_err("too large");
            assert_eq!(
                (refused.code(), refused.message()),
                (Code::InvalidArgument, "etcdserver: request is too large"),
                "{bytes}"
            );
        }
    }
    let got = crate::support::get(&rpc, "a").await.unwrap();
    assert_eq!(got.header.unwrap().revision, revision, "what was refused left nothing");
    assert_eq!(got.kvs[0].value.len(), LARGEST);
}

/// A22, A44, D22: random bytes, cut and bent messages, and frames that lie about themselves, to every path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_request_bytes_never_panic() {
    let seed: u64 = from_env("QUORATE_SEED", 0xbad_b17e5);
    println!("seed {seed}");
    let mut own = start();
    let mut rng = StdRng::seed_from_u64(seed);
    let id_before = own.node.pid();
    for path in PATHS {
        for round in 0..30 {
            let body = body(&mut rng, path, round);
            if let Err(why) = send_and_forget(own.node.address(), path, body.clone()).await {
                own.node.assert_alive();
                panic!("{path}, round {round}, {body:?}: {why}");
            }
        }
        own.node.assert_alive();
    }
    assert_eq!(own.node.pid(), id_before);
    assert_serves(&mut own.node).await;
    // what the bytes wrote can be read again
    own.node.kill();
    own.node.restart();
    assert_serves(&mut own.node).await;
}

/// Clients match on these, and Go has other words for a streaming call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_protobuf_get_gos_words() {
    let own = start();
    let mut raw = Raw::connect(own.node.address(), Windows::default()).await.unwrap();
    const UNARY: &str = "grpc: error unmarshalling request: ";
    const STREAMED: &str = "grpc: failed to unmarshal the received message: ";
    for (path, text) in [
        (RANGE, UNARY),
        ("/grpc.health.v1.Health/Check", UNARY),
        ("/etcdserverpb.KV/RangeStream", STREAMED),
        ("/grpc.health.v1.Health/Watch", STREAMED),
        (WATCH, STREAMED),
    ] {
        let ended = raw.call(path, frame(b"\xff\xff\xff")).await.unwrap();
        assert_eq!(ended.grpc_status.as_deref(), Some("13"), "{path}");
        let message = ended.grpc_message.unwrap_or_default();
        assert!(message.starts_with(text), "{path}: {message}");
    }
}

/// A request body: mostly well framed and badly filled, now and then badly framed.
fn body(rng: &mut StdRng, path: &str, round: usize) -> Bytes {
    let mut random = vec![0; rng.random_range(0..200)];
    rng.fill_bytes(&mut random);
    match round % 6 {
        0 => frame(&random),
        1 => frame(&sequence_bytes(rng)),
        2 => {
            // a plausible message with some bytes changed
            let mut message = sequence_bytes(rng);
            for _ in 0..rng.random_range(1..4) {
                if !message.is_empty() {
                    let at = rng.random_range(0..message.len());
                    message[at] = rng.random();
                }
            }
            frame(&message)
        }
        3 => {
            // the length says more, or far more, than there is
            let mut lying = BytesMut::new();
            lying.put_u8(0);
            lying.put_u32(*[random.len() as u32 + 1, 1 << 20, u32::MAX].get(round / 6 % 3).unwrap());
            lying.put_slice(&random);
            lying.freeze()
        }
        4 => {
            // compressed, it says; or a flag that is none
            let mut framed = BytesMut::from(frame(&random).as_ref());
            framed[0] = if path.len().is_multiple_of(2) { 1 } else { 0xff };
            framed.freeze()
        }
        _ => {
            // many fields, many levels: sub-messages within sub-messages
            let mut nested = Vec::new();
            for _ in 0..rng.random_range(1..300) {
                let mut outer = vec![*[0x0a, 0x12, 0x1a, 0x22].get(rng.random_range(0..4)).unwrap()];
                prost::encoding::encode_varint(nested.len() as u64, &mut outer);
                outer.extend_from_slice(&nested);
                nested = outer;
            }
            frame(&nested)
        }
    }
}

/// A sequence of protobuf fields with low numbers.
fn sequence_bytes(rng: &mut StdRng) -> Vec<u8> {
    let mut message = Vec::new();
    for _ in 0..rng.random_range(0..8) {
        let number = rng.random_range(1..13u64);
        match rng.random_range(0..2) {
            0 => {
                prost::encoding::encode_varint(number << 3, &mut message);
                let value = *[0, 1, 2, 5, 99, u64::MAX, 1 << 63, rng.random()]
                    .get(rng.random_range(0..8))
                    .unwrap();
                prost::encoding::encode_varint(value, &mut message);
            }
            _ => {
                prost::encoding::encode_varint(number << 3 | 2, &mut message);
                let mut bytes = vec![0; rng.random_range(0..20)];
                rng.fill_bytes(&mut bytes);
                prost::encoding::encode_varint(bytes.len() as u64, &mut message);
                message.extend_from_slice(&bytes);
            }
        }
    }
    message
}

/// Sends one request; waits for an answer only a moment, since a stream may well stay open.
async fn send_and_forget(address: SocketAddr, path: &str, body: Bytes) -> Result<(), String> {
    let mut raw = Raw::connect(address, Windows::default())
        .await
        .map_err(|error| format!("connect: {error}"))?;
    // an HTTP/2 error is an answer too
    let _ = tokio::time::timeout(Duration::from_millis(30), raw.call(path, body)).await;
    Ok(())
}
