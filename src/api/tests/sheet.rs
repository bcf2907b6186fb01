//! The wire, held against lists that were written from etcd's own documentation and not from this code: every service,
//! message, field, enum value and error text. `sheet/*.txt` change only when etcd's API does.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use quorate_api::error::{transport, watch_cancel};
use quorate_api::{Code, Error};

const FILES: [&str; 6] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "v3electionpb/v3election.proto",
    "v3lockpb/v3lock.proto",
    "grpc/health/v1/health.proto",
];

#[derive(Default)]
struct Sheet {
    services: BTreeSet<String>,
    messages: BTreeSet<String>,
    enums: BTreeSet<String>,
}

/// What the build compiles, in the form of the lists.
fn ours() -> Sheet {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let compiled = protox::compile(FILES, [root]).unwrap();
    let mut sheet = Sheet::default();
    let (mut messages, mut enums) = (Vec::new(), Vec::new());
    for file in &compiled.file {
        let package = file.package().to_owned();
        for service in &file.service {
            for method in &service.method {
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "unary",
                    (false, true) => "server stream",
                    (true, true) => "both stream",
                    (true, false) => "client stream",
                };
                sheet.services.insert(format!(
                    "/{package}.{}/{}: {} -> {}, {kind}",
                    service.name(),
                    method.name(),
                    method.input_type().trim_start_matches('.'),
                    method.output_type().trim_start_matches('.')
                ));
            }
        }
        messages.extend(
            file.message_type
                .iter()
                .map(|message| (package.clone(), message.clone())),
        );
        enums.extend(file.enum_type.iter().map(|of| (package.clone(), of.clone())));
    }
    while let Some((within, message)) = messages.pop() {
        let name = format!("{within}.{}", message.name());
        enums.extend(message.enum_type.iter().map(|of| (name.clone(), of.clone())));
        let (maps, nested): (Vec<_>, Vec<_>) = message
            .nested_type
            .iter()
            .cloned()
            .partition(|nested| nested.options.as_ref().is_some_and(|options| options.map_entry()));
        messages.extend(nested.into_iter().map(|nested| (name.clone(), nested)));
        if message.field.is_empty() {
            sheet.messages.insert(format!("{name} (empty)"));
        }
        for field in &message.field {
            let plain = |field: &str, kind: &str| match field.trim_start_matches('.') {
                "" => kind.trim_start_matches("TYPE_").to_lowercase(),
                named => named.to_owned(),
            };
            let kind = plain(field.type_name(), field.r#type().as_str_name());
            let map = maps.iter().find(|map| kind == format!("{name}.{}", map.name()));
            let repeated = field.label().as_str_name() == "LABEL_REPEATED";
            let kind = match map {
                Some(map) => {
                    let of = |at: usize| plain(map.field[at].type_name(), map.field[at].r#type().as_str_name());
                    format!("map<{}, {}>", of(0), of(1))
                }
                None if repeated => format!("repeated {kind}"),
                None => kind,
            };
            let oneof = field.oneof_index.map_or(String::new(), |at| {
                format!(", oneof {}", message.oneof_decl[usize::try_from(at).unwrap()].name())
            });
            sheet
                .messages
                .insert(format!("{name}.{} = {}: {kind}{oneof}", field.name(), field.number()));
        }
    }
    for (within, of) in enums {
        for value in &of.value {
            let (name, number) = (value.name(), value.number());
            sheet.enums.insert(format!("{within}.{}.{name} = {number}", of.name()));
        }
    }
    sheet
}

fn assert_same(what: &str, ours: &BTreeSet<String>, sheet: &str) {
    let sheet: BTreeSet<String> = sheet.lines().map(str::to_owned).collect();
    let missing: Vec<_> = sheet.difference(ours).collect();
    let extra: Vec<_> = ours.difference(&sheet).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}\nmissing here: {missing:#?}\nonly here: {extra:#?}"
    );
}

#[test]
fn services_and_methods_are_etcds() {
    assert_same("services", &ours().services, include_str!("sheet/services.txt"));
}

#[test]
fn messages_have_etcds_fields_numbers_and_types() {
    assert_same("messages", &ours().messages, include_str!("sheet/messages.txt"));
}

#[test]
fn enums_have_etcds_values() {
    assert_same("enums", &ours().enums, include_str!("sheet/enums.txt"));
}

#[test]
fn errors_have_etcds_codes_and_texts() {
    let ours = Error::ALL
        .iter()
        .map(|error| format!("{:?}: {}", error.code(), error.text()))
        .collect();
    // The second list holds what only this node says; COMPATIBILITY.md tells when.
    let all = [
        include_str!("sheet/errors.txt"),
        include_str!("sheet/errors_of_our_own.txt"),
    ]
    .concat();
    assert_same("errors", &ours, &all);
}

#[test]
fn transport_errors_have_gos_texts() {
    for (status, code, text) in [
        (
            transport::message_too_large(3_000_000, 2_097_152),
            Code::ResourceExhausted,
            "grpc: received message larger than max (3000000 vs. 2097152)",
        ),
        (
            transport::unknown_method("etcdserverpb.KV", "Nope"),
            Code::Unimplemented,
            "unknown method Nope for service etcdserverpb.KV",
        ),
        (
            transport::unknown_service("no.Such"),
            Code::Unimplemented,
            "unknown service no.Such",
        ),
        (
            transport::bad_message("why"),
            Code::Internal,
            "grpc: error unmarshalling request: why",
        ),
    ] {
        assert_eq!((status.code, status.message.as_ref()), (code, text));
    }
}

#[test]
fn watches_are_cancelled_in_etcds_words() {
    assert_eq!(
        [
            watch_cancel::DUPLICATE_ID,
            watch_cancel::EMPTY_RANGE,
            watch_cancel::COMPACTED
        ],
        [
            "mvcc: duplicate watch ID provided on the WatchStream",
            "mvcc: watcher range is empty",
            "etcdserver: mvcc: required revision has been compacted",
        ]
    );
}
