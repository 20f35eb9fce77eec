//! How large a message of a call may be, looked at before it is read: what gRPC says of its length.
//!
//! A message becomes larger when it is decoded, by as much as forty times where it is many parts without content, and it is
//! decoded before anybody asks who sent it. Only those that carry messages of producers need to be large. Pure; on the data
//! thread of the call, for each piece of its body.

use crate::proto::karman::admin_server;
use crate::proto::v2::{admin_server as public_admin_server, messaging_service_server};
use crate::status::Rejection;

/// The largest ones are acknowledgements of 4,096 messages.
const MESSAGE_MAX_BYTES: usize = 1024 * 1024;
/// Operators send messages, and users with many policies.
const ADMIN_MAX_BYTES: usize = 8 * 1024 * 1024;
const SEND_METHOD: &str = "SendMessage";
/// Whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Where in a body the next byte is: in the prefix of a message, or in the message.
#[derive(Debug)]
pub(super) struct Framing {
    max_bytes: usize,
    prefix: [u8; PREFIX_BYTES],
    filled: usize,
    left: usize,
}

impl Framing {
    /// What the messages of a call are looked at by; `None`: the decoder's own limit is theirs.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let max_bytes = match service {
            messaging_service_server::SERVICE_NAME if method == SEND_METHOD => return None,
            messaging_service_server::SERVICE_NAME => MESSAGE_MAX_BYTES,
            admin_server::SERVICE_NAME | public_admin_server::SERVICE_NAME => ADMIN_MAX_BYTES,
            _ => return None,
        };
        Some(Self { max_bytes, prefix: [0; PREFIX_BYTES], filled: 0, left: 0 })
    }

    /// The next bytes of the body; refuses the first message that is too large.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Rejection> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let now = self.left.min(bytes.len());
                self.left -= now;
                bytes = &bytes[now..];
                continue;
            }
            self.prefix[self.filled] = bytes[0];
            self.filled += 1;
            bytes = &bytes[1..];
            if self.filled == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                (self.filled, self.left) = (0, u32::from_be_bytes(length) as usize);
                if self.left > self.max_bytes {
                    let (size, limit) = (self.left, self.max_bytes);
                    return Err(Rejection::BadRequest(format!(
                        "the request has {size} bytes, the limit of this call is {limit}"
                    )));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).expect("a test's length").to_be_bytes();
        [&[0][..], &prefix, &vec![0xff; length]].concat()
    }

    fn framing(path: &str) -> Framing {
        Framing::of(path).expect("it is looked at")
    }

    #[test]
    fn each_message_of_a_body_is_looked_at_in_whatever_pieces_it_comes() {
        let body =
            [message(0), message(7), message(MESSAGE_MAX_BYTES), message(MESSAGE_MAX_BYTES + 1)].concat();
        let good = body.len() - MESSAGE_MAX_BYTES - 1;
        for pieces in [1, 3, 5, 6, 16_384, body.len()] {
            let mut framing = framing("/apache.rocketmq.v2.MessagingService/AckMessage");
            let mut taken = 0;
            let refused = body.chunks(pieces).find_map(|piece| {
                taken += piece.len();
                framing.pass(piece).err()
            });
            let refused = refused.expect("the last is too large").to_string();
            assert!(refused.contains("1048577") && refused.contains("1048576"), "{refused}");
            assert!(taken >= good && taken < good + pieces, "in the piece that has the last of its prefix");
        }
    }

    #[test]
    fn sends_and_calls_between_nodes_may_be_large() {
        for path in [
            "/apache.rocketmq.v2.MessagingService/SendMessage",
            "/karman.v1.Replication/Follow",
            "/karman.v1.Registration/Register",
            "nonsense",
        ] {
            assert!(Framing::of(path).is_none(), "{path}");
        }
        assert_eq!(framing("/apache.rocketmq.v2.Admin/SendMessage").max_bytes, ADMIN_MAX_BYTES);
        assert_eq!(framing("/karman.v1.Admin/ChangeUser").max_bytes, ADMIN_MAX_BYTES);
    }
}
