//! What `karman cluster list` says of the first broker set, and waiting for its slaves.

use std::time::Duration;

use serde_json::Value;

use crate::{Cluster, until};

/// What is listed of the set, `null` while no master is registered.
pub fn listed(cluster: &Cluster) -> Value {
    let list: Value =
        serde_json::from_str(&cluster.karman(&["-o", "json", "cluster", "list"])).expect("a list");
    list[0].clone()
}

/// Waits until so many slaves count and have flushed all that the master has.
pub fn wait_whole(cluster: &Cluster, slaves: usize, deadline: Duration) {
    until(&format!("{slaves} slaves have everything"), deadline, || {
        let set = listed(cluster);
        let replicas = set["replicas"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
        let whole =
            replicas.filter(|replica| replica["in_sync"] == true && replica["flushed_lag_bytes"] == 0);
        (whole.count() == slaves).then_some(())
    });
}
