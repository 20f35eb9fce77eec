//! Java's properties form, and values that need more than another name. Pure.

use std::net::{IpAddr, SocketAddr};

use java_properties::{PropertiesError, PropertiesIter};

use super::Role;

/// The keys of a file, in its order. As in Java the last value of a key counts, and bytes are Latin-1.
pub(super) struct Properties(Vec<(String, String)>);

impl Properties {
    pub(super) fn parse(text: &[u8]) -> Result<Self, PropertiesError> {
        let mut all: Vec<(String, String)> = Vec::new();
        PropertiesIter::new(text).read_into(|key, value| {
            let value = value.trim().to_owned();
            match all.iter_mut().find(|(known, _)| *known == key) {
                Some(known) => known.1 = value,
                None => all.push((key, value)),
            }
        })?;
        Ok(Self(all))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn get(&self, wanted: &str) -> Option<&str> {
        self.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value)
    }

    /// An address out of two keys.
    fn address(&self, host: &str, port: &str, default_port: &str) -> String {
        let host = self.get(host).filter(|host| !host.is_empty()).unwrap_or("0.0.0.0");
        let port = self.get(port).unwrap_or(default_port);
        match (host.parse::<IpAddr>(), port.parse()) {
            (Ok(host), Ok(port)) => SocketAddr::new(host, port).to_string(),
            _ => format!("{host}:{port}"),
        }
    }
}

/// Our keys with their values, and what to look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Special {
    pub(super) pairs: Vec<(String, String)>,
    pub(super) note: String,
}

fn to(pairs: &[(&str, &str)], note: &str) -> Result<Special, String> {
    let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Ok(Special { pairs, note: note.to_owned() })
}

/// Whether [`special`] decides of the key.
pub(super) fn is_special(role: Role, key: &str) -> bool {
    special(role, key, "", &Properties(Vec::new())).is_some()
}

/// Of a key that has another form here: what it becomes, or what to do instead.
pub(super) fn special(
    role: Role,
    key: &str,
    value: &str,
    properties: &Properties,
) -> Option<Result<Special, String>> {
    let listen = |port| properties.address("bindAddress", "listenPort", port);
    Some(match (role, key) {
        (_, "metricsPromExporterHost" | "metricsPromExporterPort") => {
            let address = properties.address("metricsPromExporterHost", "metricsPromExporterPort", "5557");
            to(&[("metricsListenAddress", &address)], "")
        }
        (Role::Broker, "listenPort") => to(
            &[("internalListenAddress", &listen("10911"))],
            "other nodes connect there; clients come to grpcListenAddress (8081), as to RocketMQ's proxy",
        ),
        (Role::Broker, "bindAddress") => {
            let clients = properties.address("bindAddress", "", "8081");
            to(&[("internalListenAddress", &listen("10911")), ("grpcListenAddress", &clients)], "")
        }
        (Role::Namesrv, "listenPort" | "bindAddress") => to(&[("grpcListenAddress", &listen("9876"))], ""),
        (Role::Broker, "brokerId") if value == "-1" => {
            Err("controllers do not number brokers here: give each of a set a brokerId of its own, from 1 up"
                .to_owned())
        }
        (Role::Namesrv, "controllerDLegerPeers") => {
            let port = properties.get("listenPort").unwrap_or("9876");
            peers(value, port).and_then(|peers| {
                let enabled = properties.get("enableControllerInNamesrv").is_some();
                let mut pairs = vec![("controllerPeers", peers.as_str())];
                // Here no controller is a process of its own.
                pairs.extend((!enabled).then_some(("enableControllerInNamesrv", "true")));
                to(&pairs, "controllers are at their namesrvs' addresses here: look at the ports")
            })
        }
        (Role::Namesrv, "controllerDLegerSelfId") => {
            let shift = shift(properties.get("controllerDLegerPeers").unwrap_or_default());
            number(value).and_then(|number| to(&[("controllerSelfId", &(number + shift).to_string())], ""))
        }
        _ => return None,
    })
}

/// `n0-host:9878;n1-host:9878` as `1-host:PORT;2-host:PORT`.
fn peers(value: &str, port: &str) -> Result<String, String> {
    let shift = shift(value);
    let peer = |peer: &str| {
        let (id, host) = split(peer).ok_or_else(|| {
            format!("{peer:?} is not of the form n0-host:port; set controllerPeers: 1-host:9876;2-host:9876;3-host:9876")
        })?;
        Ok(format!("{}-{host}:{port}", number(id)? + shift))
    };
    let peers: Result<Vec<_>, String> = value.split(';').filter(|peer| !peer.is_empty()).map(peer).collect();
    Ok(peers?.join(";"))
}

/// The id and the host of a peer.
fn split(peer: &str) -> Option<(&str, &str)> {
    let (id, address) = peer.split_once('-')?;
    let (host, _) = address.rsplit_once(':')?;
    Some((id, host))
}

/// Ids begin with 1 here, and usually with 0 there.
fn shift(peers: &str) -> u64 {
    let has_zero = peers.split(';').filter_map(split).any(|(id, _)| number(id) == Ok(0));
    u64::from(has_zero)
}

/// `n0` is 0.
fn number(id: &str) -> Result<u64, String> {
    let digits = id.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    let number = digits.parse::<u32>().map(u64::from);
    number.map_err(|_| format!("{id:?} has no number: set controllerPeers and controllerSelfId"))
}
