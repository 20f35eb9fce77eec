//! Compiles `proto/` with protox, so that no machine needs `protoc`.

use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 8] = [
    "apache/rocketmq/v2/definition.proto",
    "apache/rocketmq/v2/service.proto",
    "apache/rocketmq/v2/admin.proto",
    "karman/v1/registration.proto",
    "karman/v1/admin.proto",
    "karman/v1/replication.proto",
    "karman/v1/controller.proto",
    "karman/v1/relay.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".apache.rocketmq.v2.Message.body")
        .bytes(".apache.rocketmq.v2.AdminSendMessageRequest.body")
        .bytes(".karman.v1.Frame.records")
        .bytes(".karman.v1.RestoreMessagesRequest.messages")
        // These carry messages; `wire` declares them with the message as bytes. See its module comment.
        .extern_path(".apache.rocketmq.v2.SendMessageRequest", "crate::wire::SendMessageRequest")
        .extern_path(".apache.rocketmq.v2.ReceiveMessageResponse", "crate::wire::ReceiveMessageResponse")
        .extern_path(".apache.rocketmq.v2.PullMessageResponse", "crate::wire::PullMessageResponse")
        // `auth` says how it is shown.
        .skip_debug([".karman.v1.Secret"])
        .codec_path("crate::codec::SmallBuffers")
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    Ok(())
}
