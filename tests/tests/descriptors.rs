//! Our protos against those inside the official Python package, field by field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use karman_remoting::proto::DESCRIPTORS;
use karman_tests::driver::root;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

const PACKAGE: &str = "apache.rocketmq.v2";

/// What only ours has, because the contract grew after the package was made: members of declarations that both have,
const NEWER_MEMBERS: [&str; 5] = [
    "Code=INVALID_CLIENT_PROPERTIES",
    "Settings#client_properties",
    "Settings.ClientPropertiesEntry",
    "Settings.ClientPropertiesEntry#key",
    "Settings.ClientPropertiesEntry#value",
];

/// calls of the service `Admin`,
const NEWER_ADMIN_CALLS: [&str; 15] = [
    "AdminSendMessage",
    "DeleteSubscription",
    "DescribeGroupAccumulation",
    "DescribeSubscription",
    "DescribeTopicStatus",
    "GetConsumerRunningInfo",
    "GetProxyRuntimeStats",
    "GetTopicRoute",
    "ListConsumerConnection",
    "ListSubscription",
    "PrintThreadStackTrace",
    "QueryMessage",
    "QueryTimeSpan",
    "ResetGroupOffset",
    "VerifyMessage",
];

/// and messages and enums, all of `admin.proto`.
const NEWER_TYPES: [&str; 37] = [
    "AdminSendMessageRequest",
    "AdminSendMessageResponse",
    "ClientInfo",
    "ConsumeStatus",
    "ConsumerRunningInfo",
    "DeleteSubscriptionRequest",
    "DeleteSubscriptionResponse",
    "DescribeGroupAccumulationRequest",
    "DescribeGroupAccumulationResponse",
    "DescribeSubscriptionRequest",
    "DescribeSubscriptionResponse",
    "DescribeTopicStatusRequest",
    "DescribeTopicStatusResponse",
    "GetConsumerRunningInfoRequest",
    "GetConsumerRunningInfoResponse",
    "GetProxyRuntimeStatsRequest",
    "GetProxyRuntimeStatsResponse",
    "GetTopicRouteRequest",
    "GetTopicRouteResponse",
    "ListConsumerConnectionRequest",
    "ListConsumerConnectionResponse",
    "ListMessageRequest",
    "ListMessageResponse",
    "ListSubscriptionRequest",
    "ListSubscriptionResponse",
    "MessageModel",
    "MessageQueueItem",
    "PrintThreadStackTraceRequest",
    "PrintThreadStackTraceResponse",
    "ProcessQueueInfo",
    "QueryTimeSpanRequest",
    "QueryTimeSpanResponse",
    "ResetGroupOffsetRequest",
    "ResetGroupOffsetResponse",
    "SubscriptionInfo",
    "VerifyMessageRequest",
    "VerifyMessageResponse",
];

/// Everything the wire knows of a proto file, one line for each fact.
#[derive(Default)]
struct Facts(BTreeMap<String, String>);

impl Facts {
    fn of(files: &[FileDescriptorProto]) -> Facts {
        let mut facts = Facts::default();
        for file in files.iter().filter(|file| file.package() == PACKAGE) {
            let package = format!(".{}", file.package());
            file.message_type.iter().for_each(|message| facts.message(&package, message));
            file.enum_type.iter().for_each(|one| facts.enumeration(&package, one));
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{package}.{}/{}", service.name(), method.name());
                    let streams = (method.client_streaming(), method.server_streaming());
                    facts.add(name, format!("{} {} {streams:?}", method.input_type(), method.output_type()));
                }
            }
        }
        facts
    }

    fn add(&mut self, name: String, value: String) {
        assert!(self.0.insert(name.clone(), value).is_none(), "{name} is there twice");
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        self.add(name.clone(), "message".to_owned());
        for field in &message.field {
            let kind = Type::try_from(field.r#type.unwrap()).unwrap();
            let label = Label::try_from(field.label.unwrap()).unwrap();
            let oneof = field.oneof_index.map(|at| message.oneof_decl[usize::try_from(at).unwrap()].name());
            let value = format!(
                "{} {kind:?} {} {label:?} oneof={oneof:?} optional={}",
                field.number(),
                field.type_name(),
                field.proto3_optional()
            );
            self.add(format!("{name}#{}", field.name()), value);
        }
        message.nested_type.iter().for_each(|nested| self.message(&name, nested));
        message.enum_type.iter().for_each(|nested| self.enumeration(&name, nested));
    }

    fn enumeration(&mut self, scope: &str, one: &EnumDescriptorProto) {
        for value in &one.value {
            self.add(format!("{scope}.{}={}", one.name(), value.name()), value.number().to_string());
        }
    }
}

fn official() -> Facts {
    let output = Command::new(root().join("target/clients/python/bin/python"))
        .arg(root().join("tests/clients/python/descriptors.py"))
        .env("HOME", tempfile::tempdir().unwrap().path())
        .output()
        .expect("`ci/test` makes target/clients/python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let files = text.lines().map(|line| {
        let bytes: Vec<u8> = line.as_bytes().chunks(2).map(byte).collect();
        FileDescriptorProto::decode(bytes.as_slice()).unwrap()
    });
    Facts::of(&files.collect::<Vec<_>>())
}

fn is_newer(name: &str) -> bool {
    if let Some(call) = name.strip_prefix("Admin/") {
        return NEWER_ADMIN_CALLS.contains(&call);
    }
    NEWER_MEMBERS.contains(&name) || NEWER_TYPES.contains(&type_of(name))
}

/// The outermost message or enum that a fact is about.
fn type_of(name: &str) -> &str {
    name.split(['.', '#', '=']).next().unwrap_or(name)
}

#[test]
fn our_protos_say_what_the_official_ones_say() {
    let ours = Facts::of(&FileDescriptorSet::decode(DESCRIPTORS).unwrap().file);
    let official = official();
    assert!(official.0.len() > 400, "only {} facts in the official package", official.0.len());
    let different: Vec<String> = official
        .0
        .iter()
        .filter(|(name, value)| ours.0.get(*name) != Some(*value))
        .map(|(name, value)| format!("{name}: official {value}, ours {:?}", ours.0.get(name)))
        .collect();
    assert!(different.is_empty(), "{different:#?}");

    let only_ours: BTreeSet<&str> = ours
        .0
        .keys()
        .filter(|name| !official.0.contains_key(*name))
        .map(|name| &name[PACKAGE.len() + 2..])
        .collect();
    let unknown: Vec<_> = only_ours.iter().filter(|name| !is_newer(name)).collect();
    assert!(unknown.is_empty(), "not in the official package and not listed as newer: {unknown:#?}");
    for listed in NEWER_TYPES {
        assert!(only_ours.iter().any(|name| type_of(name) == listed), "{listed} is not newer");
    }
    for listed in NEWER_MEMBERS {
        assert!(only_ours.contains(listed), "{listed} is not newer");
    }
}
