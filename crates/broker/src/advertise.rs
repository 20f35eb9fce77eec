//! What others are told to connect to. Pure but for one question to the kernel; called once, at start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use karman_remoting::proto::v2::{Address, AddressScheme, Endpoints};

/// `host:port` for others: what is configured, with the port of the listener where it names none; without configuration
/// the listening address, or this machine's own address where that is all addresses.
pub fn advertised(configured: &str, listening: SocketAddr) -> String {
    if configured.is_empty() {
        let ip = if listening.ip().is_unspecified() { own_address() } else { listening.ip() };
        return SocketAddr::new(ip, listening.port()).to_string();
    }
    match configured.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => configured.to_owned(),
        _ => format!("{configured}:{}", listening.port()),
    }
}

/// The address this machine would send from. Connecting a UDP socket sends nothing; it asks the routing table.
fn own_address() -> IpAddr {
    let asked = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // An address that is reserved for documentation.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    asked.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// `host:port` as clients get it: one address; its scheme tells names from numbers.
pub fn endpoints(address: &str) -> Endpoints {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let scheme = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => AddressScheme::IPv4,
        Ok(IpAddr::V6(_)) => AddressScheme::IPv6,
        Err(_) => AddressScheme::DomainName,
    };
    let address = Address { host: host.to_owned(), port: port.parse().unwrap_or(0) };
    Endpoints { scheme: scheme.into(), addresses: vec![address] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_is_advertised_with_the_listeners_port_added() {
        let listening = "127.0.0.1:8081".parse().unwrap();
        assert_eq!(advertised("", listening), "127.0.0.1:8081");
        assert_eq!(advertised("broker-a", listening), "broker-a:8081");
        assert_eq!(advertised("10.0.0.7:18081", listening), "10.0.0.7:18081");
    }

    #[test]
    fn all_addresses_are_not_advertised() {
        assert!(!advertised("", "0.0.0.0:8081".parse().unwrap()).starts_with("0.0.0.0"));
    }

    #[test]
    fn names_and_numbers_have_their_scheme() {
        assert_eq!(endpoints("127.0.0.1:1").scheme(), AddressScheme::IPv4);
        assert_eq!(endpoints("broker-a:1").scheme(), AddressScheme::DomainName);
    }
}
