//! Compiles `proto/` without any system package.

use std::error::Error;

const PROTO_ROOT: &str = "../../proto";
const FILES: [&str; 8] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "v3electionpb/v3election.proto",
    "v3lockpb/v3lock.proto",
    "grpc/health/v1/health.proto",
    "quorate.proto",
    "peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile(FILES, [PROTO_ROOT])?;
    prost_build::Config::new()
        .bytes(["."])
        .include_file("messages.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
