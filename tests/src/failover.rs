//! A broker set of three that elects its master, in front of three namesrvs: who is master, and how long sends are not answered OK.
//! For `tests/failover.rs` and the program `failover_rounds`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use karman_remoting::proto::v2::{self, Code};

use crate::raw::message;
use crate::replicas::listed;
use crate::{Cluster, Raw, until};

const DEADLINE: Duration = Duration::from_secs(30);
/// So many are answered OK after the change.
const SENDS_BEHIND: u32 = 20;
/// The topic of all sends.
pub const TOPIC: &str = "t";

/// The set, and a connection to a namesrv.
pub fn start() -> (Cluster, Raw) {
    let cluster = Cluster::builder().namesrvs(3).controlled(3).start();
    wait_in_sync(&cluster, 3);
    let raw = Raw::connect(&cluster.namesrvs[0].endpoint());
    let status = raw.create_topic(TOPIC, v2::MessageType::Normal);
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    cluster.wait_topic(TOPIC);
    (cluster, raw)
}

/// Waits until so many brokers of the set count, and says which of them is the master: its index.
pub fn wait_in_sync(cluster: &Cluster, count: u64) -> usize {
    let master = until(&format!("{count} brokers are in sync"), DEADLINE, || {
        let set = listed(cluster);
        let address = set["internal_address"].as_str().filter(|_| set["in_sync"].as_u64() == Some(count));
        address.map(str::to_owned)
    });
    let is_master = |index: &usize| cluster.members[*index].ready("internal") == master;
    (0..cluster.members.len()).find(is_master).expect("the master is one of the members")
}

fn send(raw: &Raw, id: &str) -> Code {
    let response = raw.send(&[message(TOPIC, id)]);
    let status = response.entries.first().and_then(|entry| entry.status.clone()).or(response.status);
    status.unwrap_or_default().code()
}

/// Sends until one is answered OK; how long that took, and how many were not.
pub fn send_until_ok(raw: &Raw, id: &str, sent: &mut BTreeSet<String>) -> (Duration, u32) {
    let (began, mut failed) = (Instant::now(), 0);
    until(&format!("{id} is answered OK"), DEADLINE, || {
        let is_ok = send(raw, id) == Code::Ok;
        failed += u32::from(!is_ok);
        is_ok.then_some(())
    });
    sent.insert(id.to_owned());
    (began.elapsed(), failed)
}

/// Sends one after the other while `act` changes the master and until it is done and many are answered OK again: the longest time
/// from one such answer to the next, and how often the same message had to be sent again at most.
pub fn interrupted(raw: &Raw, name: &str, act: impl FnOnce() + Send) -> (Duration, u32) {
    let (mut sent, mut behind) = (BTreeSet::new(), 0);
    let (mut longest, mut repeated) = (Duration::ZERO, 0);
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        while behind < SENDS_BEHIND {
            behind += u32::from(acting.is_finished());
            let (took, failed) = send_until_ok(raw, &format!("{name} {}", sent.len()), &mut sent);
            (longest, repeated) = (longest.max(took), repeated.max(failed));
        }
    });
    (longest, repeated)
}
