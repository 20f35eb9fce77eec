//! The generated code of `proto/`, and the descriptors for reflection.

#![allow(clippy::all, clippy::unwrap_used, missing_debug_implementations, unreachable_pub)]

// The generated code refers to other packages by their path from here.
#[doc(hidden)]
pub mod apache {
    pub mod rocketmq {
        pub mod v2 {
            pub use crate::wire::{
                PullMessageResponse, ReceiveMessageResponse, SendMessageRequest, pull_message_response,
                receive_message_response,
            };
            tonic::include_proto!("apache.rocketmq.v2");
        }
    }
}

#[doc(hidden)]
pub mod karman_package {
    pub mod v1 {
        tonic::include_proto!("karman.v1");
    }
}

/// `apache.rocketmq.v2`: the public contract.
pub use apache::rocketmq::v2;
/// `karman.v1`: what nodes and tools of Karman say to each other.
pub use karman_package::v1 as karman;

/// Every file of `proto/` with its imports, as a serialized `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");
