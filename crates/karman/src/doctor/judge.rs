//! What is good, doubtful or wrong of what was seen, and what to do. Pure: it asks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use karman_client::Code;
use karman_remoting::proto::karman as v1;

use super::Finding;
use super::probe::Probe;
use crate::node::{code_of, message_of};
use crate::output::{bytes, grouped};
use crate::time;

/// A call inside one building takes less.
const SLOW_MS: f64 = 50.0;
/// What is shown of a clock is known to half a second, and a call takes a little.
const CLOCK_WARNING_MS: u64 = 2_000;
/// Delays, times to live and the ends of certificates are off by so much.
const CLOCK_ERROR_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;
const CERTIFICATE_WARNING_MS: u64 = 30 * DAY_MS;
/// Where expired segments go at any hour, where segments go before their time, and where sends are refused.
const DISK_PERCENT: [u32; 3] = [75, 85, 90];
/// Connections and segments take one each.
const FILES_LIMIT_MIN: u32 = 10_000;
const FILES_PERCENT: u64 = 80;

pub(super) fn cluster(brokers: &[v1::BrokerStatus], asked: &str) -> Finding {
    if brokers.is_empty() {
        let advice = "start a broker whose namesrvAddr names this node";
        return Finding::error("cluster", asked, "it knows no broker".to_owned(), advice);
    }
    let names: Vec<&str> = brokers.iter().map(|broker| &*broker.broker_name).collect();
    Finding::ok("cluster", asked, format!("brokers: {}", names.join(", ")))
}

/// One build everywhere, this command too.
pub(super) fn versions(brokers: &[v1::BrokerStatus], asked: &str) -> Option<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for broker in brokers.iter().filter(|broker| !broker.version.is_empty()) {
        versions.entry(&broker.version).or_default().push(&broker.broker_name);
    }
    let own = env!("CARGO_PKG_VERSION");
    let told: Vec<String> =
        versions.iter().map(|(version, names)| format!("{version} ({})", names.join(", "))).collect();
    let told = format!("{}; this command: {own}", told.join(", "));
    match versions.keys().all(|version| *version == own) {
        _ if versions.is_empty() => None,
        true => Some(Finding::ok("versions", asked, told)),
        false => {
            let advice = "bring all to one version: docs/operations.md says in which order";
            Some(Finding::warning("versions", asked, told, advice))
        }
    }
}

/// What clients are told to connect to; whether it answers is seen when it is tried.
pub(super) fn advertised(broker: &v1::BrokerStatus, asked: &str) -> Finding {
    let (endpoint, name) = (&broker.endpoint, &broker.broker_name);
    let is = |endpoint: &str, what: fn(&IpAddr) -> bool| {
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host).trim_matches(['[', ']']);
        host.parse().is_ok_and(|address| what(&address))
            || (host == "localhost" && what(&[127, 0, 0, 1].into()))
    };
    let told = format!("clients are told {endpoint}");
    let advice = "set advertisedAddress to a name or an address of that host that clients reach";
    if is(endpoint, IpAddr::is_unspecified) {
        Finding::error("advertised", name, format!("{told}, which is no address"), advice)
    } else if !is(endpoint, IpAddr::is_loopback) {
        Finding::ok("advertised", name, told)
    } else if is(asked, IpAddr::is_loopback) {
        Finding::ok("advertised", name, format!("{told}: only those on this machine reach it"))
    } else {
        Finding::error("advertised", name, format!("{told}, which is their own machine"), advice)
    }
}

/// What a broker says of itself.
pub(super) fn broker(broker: &v1::BrokerStatus) -> Vec<Finding> {
    let name = &broker.broker_name;
    if code_of(broker.status.as_ref()) != Code::Ok {
        let told = message_of(broker.status.as_ref()).to_owned();
        let advice = "look at its log; `karman ready` at its host says what it waits for";
        return vec![Finding::error("broker", name, told, advice)];
    }
    [disk(broker), files(broker), replicas(broker), damage(broker)].into_iter().flatten().collect()
}

fn disk(broker: &v1::BrokerStatus) -> Option<Finding> {
    let (name, used) = (&broker.broker_name, broker.disk_used_percent?);
    let left = bytes(broker.disk_available_bytes.unwrap_or_default());
    let told = format!("{used} % used, {left} left");
    let [any_hour, early, refused] = DISK_PERCENT;
    let advice = "a shorter fileReservedTime, a larger disk, or one more broker set";
    Some(if used > refused {
        Finding::error("disk", name, format!("{told}: sends are refused"), advice)
    } else if used > early {
        Finding::error("disk", name, format!("{told}: messages go before their time"), advice)
    } else if used > any_hour {
        Finding::warning("disk", name, told, advice)
    } else {
        Finding::ok("disk", name, told)
    })
}

fn files(broker: &v1::BrokerStatus) -> Option<Finding> {
    let (open, limit) = (broker.open_files, broker.open_files_limit);
    let told = format!("{} open, {} allowed", grouped(open.into()), grouped(limit.into()));
    let advice = "raise it: LimitNOFILE=1048576 of a systemd unit, ulimits of a container, ulimit -n";
    let name = &broker.broker_name;
    match u64::from(open) * 100 > u64::from(limit) * FILES_PERCENT {
        _ if limit == 0 => None,
        true => Some(Finding::error("open files", name, told, advice)),
        false if limit < FILES_LIMIT_MIN => Some(Finding::warning("open files", name, told, advice)),
        false => Some(Finding::ok("open files", name, told)),
    }
}

fn replicas(broker: &v1::BrokerStatus) -> Option<Finding> {
    let (name, in_sync, needed) = (&broker.broker_name, broker.in_sync_count, broker.in_sync_needed);
    let told = format!("{in_sync} in sync with the master, {needed} needed");
    if in_sync < needed {
        let told = format!("{told}: nothing that asks for replicas is answered");
        return Some(Finding::error(
            "replicas",
            name,
            told,
            "start its slaves; `karman cluster list` shows them",
        ));
    }
    let behind = broker.replicas.iter().find(|replica| !replica.in_sync);
    let Some(slave) = behind else {
        return (!broker.replicas.is_empty()).then(|| Finding::ok("replicas", name, told));
    };
    let told = format!("{told}; slave {} is {} behind", slave.broker_id, bytes(slave.lag_bytes));
    Some(Finding::warning(
        "replicas",
        name,
        told,
        "it catches up by itself, or its disk or network is too slow",
    ))
}

fn damage(broker: &v1::BrokerStatus) -> Option<Finding> {
    let damaged = broker.damaged_bytes;
    let told = || format!("{} bytes of its log are damaged", grouped(damaged));
    let advice = "`karman store verify --live` lists them; look at the disk";
    (damaged > 0).then(|| Finding::error("damage", &broker.broker_name, told(), advice))
}

pub(super) fn controllers(
    state: &v1::DescribeControllerResponse,
    refused: Option<String>,
    asked: &str,
) -> Vec<Finding> {
    if let Some(refused) = refused {
        let advice = "a majority of the controllers must run and reach one another";
        return vec![Finding::error("controllers", asked, refused, advice)];
    }
    let count = state.controllers.len();
    let mut findings = vec![Finding::ok("controllers", asked, format!("{count}, led by {}", state.leader))];
    for set in &state.sets {
        let alive: BTreeSet<i32> =
            set.members.iter().filter(|member| member.alive).map(|member| member.broker_id).collect();
        let name = &set.broker_name;
        if set.master.is_none_or(|master| !alive.contains(&master)) {
            let advice = "start a member that was in sync; `karman cluster show` says which";
            findings.push(Finding::error("master", name, "no master is alive".to_owned(), advice));
        }
        for silent in
            set.members.iter().filter(|member| !member.alive && Some(member.broker_id) != set.master)
        {
            let told = format!("broker {} is not heard of", silent.broker_id);
            let advice = "start it; one that will not come back: `karman cluster replicas remove`";
            findings.push(Finding::warning("member", name, told, advice));
        }
    }
    let refused = state.refused.iter().map(|refused| {
        let advice = "it is configured as somebody else, or its set or cluster is not this one";
        Finding::warning("refused", &refused.who, refused.why.clone(), advice)
    });
    findings.extend(refused);
    findings
}

/// What trying an address came to.
pub(super) fn address(probe: &Probe, name: &str, now_ms: u64) -> Vec<Finding> {
    if let Some(why) = &probe.unreachable {
        let advice = "check that a node runs there, the address (advertisedAddress), and firewalls between";
        return vec![Finding::error("reachable", name, format!("not from here: {why}"), advice)];
    }
    if let Some(why) = &probe.silent {
        let advice = "it takes connections and answers no call: is it a port of Karman that clients use?";
        return vec![Finding::error("reachable", name, why.clone(), advice)];
    }
    let round_trip = probe.round_trip.map(|time| {
        let millis = time.as_secs_f64() * 1e3;
        let told = format!("answers in {millis:.1} ms");
        match millis > SLOW_MS {
            true => Finding::warning(
                "reachable",
                name,
                told,
                "a busy node or a long way; each send waits as long",
            ),
            false => Finding::ok("reachable", name, told),
        }
    });
    [round_trip, Some(tls(probe, name, now_ms)), clock(probe, name)].into_iter().flatten().collect()
}

fn tls(probe: &Probe, name: &str, now_ms: u64) -> Finding {
    let Some(tls) = &probe.tls else {
        let advice =
            "clients of Java, Go and C# speak TLS unless they are told not to: tlsServerMode=permissive";
        return Finding::warning("tls", name, "plaintext alone".to_owned(), advice);
    };
    let spoken = if probe.plaintext { "TLS and plaintext" } else { "TLS alone" };
    let Some(ends_ms) = tls.ends_ms else {
        let advice = "clients that verify certificates will refuse it";
        return Finding::warning("tls", name, format!("{spoken}; its certificate cannot be read"), advice);
    };
    let told = format!("{spoken}; certificate until {}", time::format_ms(ends_ms));
    let advice = "put a new one in its place; nodes read it without a restart";
    match ends_ms.saturating_sub(now_ms) {
        0 => Finding::error("tls", name, format!("{told}: it has ended"), advice),
        left if left < CERTIFICATE_WARNING_MS => {
            Finding::warning("tls", name, format!("{told}, {} days", left / DAY_MS), advice)
        }
        _ => Finding::ok("tls", name, told),
    }
}

fn clock(probe: &Probe, name: &str) -> Option<Finding> {
    let ahead_ms = probe.clock_ahead_ms?;
    let off_ms = ahead_ms.unsigned_abs();
    if off_ms < CLOCK_WARNING_MS {
        return Some(Finding::ok("clock", name, "as here, to a second".to_owned()));
    }
    let direction = if ahead_ms > 0 { "ahead of here" } else { "behind here" };
    let told = format!("{} {direction}", time::format_age(off_ms));
    let advice = "let chrony or another NTP client run on both; delays, times to live and certificates count by the clock";
    Some(match off_ms > CLOCK_ERROR_MS {
        true => Finding::error("clock", name, told, advice),
        false => Finding::warning("clock", name, told, advice),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use karman_remoting::proto::v2;

    use super::*;
    use crate::doctor::Level;
    use crate::doctor::probe::Tls;

    fn sound() -> v1::BrokerStatus {
        v1::BrokerStatus {
            broker_name: "a".into(),
            endpoint: "a.example:8081".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            status: Some(v2::Status { code: v2::Code::Ok.into(), message: "OK".into() }),
            disk_used_percent: Some(20),
            open_files: 100,
            open_files_limit: 1_048_576,
            in_sync_count: 1,
            in_sync_needed: 1,
            ..Default::default()
        }
    }

    fn wrong(findings: impl IntoIterator<Item = Finding>) -> Vec<(&'static str, Level)> {
        let wrong = findings.into_iter().filter(|finding| finding.level != Level::Ok);
        wrong
            .inspect(|one| assert!(one.advice.is_some(), "{one:?}"))
            .map(|one| (one.check, one.level))
            .collect()
    }

    #[test]
    fn what_a_broker_says_of_itself_is_judged() {
        assert_eq!(wrong(broker(&sound())), []);
        let slave = v1::ReplicaStatus { broker_id: 1, lag_bytes: 9, ..Default::default() };
        let refused = v2::Status { code: v2::Code::InternalError.into(), message: "no answer".into() };
        for (status, expected) in [
            (v1::BrokerStatus { disk_used_percent: Some(76), ..sound() }, ("disk", Level::Warning)),
            (v1::BrokerStatus { disk_used_percent: Some(86), ..sound() }, ("disk", Level::Error)),
            (v1::BrokerStatus { disk_used_percent: Some(91), ..sound() }, ("disk", Level::Error)),
            (v1::BrokerStatus { open_files_limit: 1024, ..sound() }, ("open files", Level::Warning)),
            (v1::BrokerStatus { open_files: 900_000, ..sound() }, ("open files", Level::Error)),
            (v1::BrokerStatus { in_sync_needed: 2, ..sound() }, ("replicas", Level::Error)),
            (v1::BrokerStatus { replicas: vec![slave], ..sound() }, ("replicas", Level::Warning)),
            (v1::BrokerStatus { damaged_bytes: 7, ..sound() }, ("damage", Level::Error)),
            (v1::BrokerStatus { status: Some(refused), ..sound() }, ("broker", Level::Error)),
        ] {
            assert_eq!(wrong(broker(&status)), [expected], "{status:?}");
        }
        let old = v1::BrokerStatus { version: "0.0.1".into(), ..sound() };
        assert_eq!(wrong(versions(&[sound(), old], "n")), [("versions", Level::Warning)]);
        assert_eq!(wrong(versions(&[sound()], "n")), []);
        assert_eq!(wrong([cluster(&[], "n")]), [("cluster", Level::Error)]);
    }

    #[test]
    fn an_address_that_clients_elsewhere_cannot_use_is_an_error() {
        let level = |endpoint: &str, asked| {
            advertised(&v1::BrokerStatus { endpoint: endpoint.into(), ..sound() }, asked).level
        };
        assert_eq!(level("a.example:8081", "a.example:8081"), Level::Ok);
        assert_eq!(level("127.0.0.1:8081", "127.0.0.1:9876"), Level::Ok);
        assert_eq!(level("localhost:8081", "[::1]:9876"), Level::Ok);
        assert_eq!(level("127.0.0.1:8081", "a.example:9876"), Level::Error);
        assert_eq!(level("[::1]:8081", "a.example:9876"), Level::Error);
        assert_eq!(level("0.0.0.0:8081", "127.0.0.1:9876"), Level::Error);
    }

    #[test]
    fn what_an_address_shows_is_judged() {
        let now_ms = 1_000 * DAY_MS;
        let seen = |ends_ms, clock_ahead_ms| Probe {
            tls: Some(Tls { ends_ms }),
            plaintext: true,
            round_trip: Some(Duration::from_millis(1)),
            clock_ahead_ms: Some(clock_ahead_ms),
            ..Probe::default()
        };
        let days = |count: u64| Some(now_ms + count * DAY_MS);
        let judged = |probe: Probe| wrong(address(&probe, "n", now_ms));
        assert_eq!(judged(seen(days(90), -600)), []);
        assert_eq!(judged(seen(days(29), 0)), [("tls", Level::Warning)]);
        assert_eq!(judged(seen(Some(now_ms - 1), 0)), [("tls", Level::Error)]);
        assert_eq!(judged(seen(None, 0)), [("tls", Level::Warning)]);
        assert_eq!(judged(seen(days(90), -2_500)), [("clock", Level::Warning)]);
        assert_eq!(judged(seen(days(90), 61_000)), [("clock", Level::Error)]);
        assert_eq!(judged(Probe { tls: None, ..seen(None, 0) }), [("tls", Level::Warning)]);
        let slow = Probe { round_trip: Some(Duration::from_millis(80)), ..seen(days(90), 0) };
        assert_eq!(judged(slow), [("reachable", Level::Warning)]);
        let gone = Probe { unreachable: Some("refused".into()), ..Probe::default() };
        assert_eq!(judged(gone), [("reachable", Level::Error)]);
        let silent = Probe { silent: Some("no node".into()), ..Probe::default() };
        assert_eq!(judged(silent), [("reachable", Level::Error)]);
    }

    #[test]
    fn a_set_without_a_master_that_is_alive_is_an_error() {
        let member = |broker_id, alive| v1::SetMember { broker_id, alive, ..Default::default() };
        let state = |master, members| v1::DescribeControllerResponse {
            sets: vec![v1::SetState { broker_name: "a".into(), master, members, ..Default::default() }],
            ..Default::default()
        };
        let judged = |state| wrong(controllers(&state, None, "n"));
        assert_eq!(judged(state(Some(1), vec![member(1, true), member(2, true)])), []);
        assert_eq!(
            judged(state(Some(1), vec![member(1, true), member(2, false)])),
            [("member", Level::Warning)]
        );
        assert_eq!(judged(state(Some(1), vec![member(1, false)])), [("master", Level::Error)]);
        assert_eq!(judged(state(None, vec![])), [("master", Level::Error)]);
        assert_eq!(
            wrong(controllers(&state(None, vec![]), Some("no leader".into()), "n")),
            [("controllers", Level::Error)]
        );
    }
}
