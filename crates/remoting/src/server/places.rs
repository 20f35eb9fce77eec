//! Places for the connections of one server: so many for all, so many for one address, and spread evenly over its data threads.
//! Shared by those; taken once for each connection, so that a lock does.
//!
//! A connection that finds none is closed without a word: an answer would take the handshake and the memory that the limit is
//! there to spare.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// How many connections were closed for want of a place, since the start of the process. A clone counts the same.
#[derive(Clone, Debug, Default)]
pub struct RefusedConnections(Arc<[AtomicU64; 2]>);

impl RefusedConnections {
    /// By the limit that was reached: that of the `node`, that of one `address`.
    pub fn counts(&self) -> [(&'static str, u64); 2] {
        let [node, address] = &*self.0;
        [("node", node.load(Ordering::Relaxed)), ("address", address.load(Ordering::Relaxed))]
    }
}

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    /// 0: as many as there are.
    max_per_address: usize,
    taken: Mutex<Taken>,
    refused: RefusedConnections,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    /// Only those that have one: no more entries than places.
    by_address: HashMap<IpAddr, OfAddress>,
    /// How many connections each data thread has.
    by_thread: Vec<usize>,
}

/// What one address has.
#[derive(Debug, Default)]
struct OfAddress {
    count: usize,
    /// Bytes that its requests hold: counted where they are admitted.
    held_bytes: Arc<AtomicUsize>,
}

/// A place of one connection; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
    /// Number of the data thread that serves it.
    thread: usize,
    held_bytes: Arc<AtomicUsize>,
}

impl Places {
    pub(super) fn new(
        max: usize,
        max_per_address: usize,
        threads: usize,
        refused: RefusedConnections,
    ) -> Arc<Self> {
        let taken = Mutex::new(Taken { by_thread: vec![0; threads], ..Taken::default() });
        Arc::new(Self { max, max_per_address, taken, refused })
    }

    /// A place for a connection from `address` that the data thread `here` has accepted, or which limit was reached.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr, here: usize) -> Result<Place, &'static str> {
        let address = whose(address);
        let mut taken = self.taken.lock();
        let [node, one] = &*self.refused.0;
        if taken.count >= self.max {
            node.fetch_add(1, Ordering::Relaxed);
            return Err("too many connections (maxConnections)");
        }
        let of_address = taken.by_address.entry(address).or_default();
        if self.max_per_address > 0 && of_address.count >= self.max_per_address {
            one.fetch_add(1, Ordering::Relaxed);
            return Err("too many connections of one address (maxConnectionsPerAddress)");
        }
        of_address.count += 1;
        let held_bytes = of_address.held_bytes.clone();
        taken.count += 1;
        // The kernel knows only who listens, and gives a thread three of four connections as often as not.
        let idlest =
            taken.by_thread.iter().enumerate().min_by_key(|(thread, count)| (**count, *thread != here));
        let thread = idlest.map_or(here, |(thread, _)| thread);
        taken.by_thread[thread] += 1;
        Ok(Place { places: self.clone(), address, thread, held_bytes })
    }
}

impl Place {
    /// Number of the data thread that serves the connection.
    pub(super) fn thread(&self) -> usize {
        self.thread
    }

    /// What requests hold that came from the same address.
    pub(super) fn held_bytes(&self) -> Arc<AtomicUsize> {
        self.held_bytes.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.count -= 1;
        taken.by_thread[self.thread] -= 1;
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            of_address.count -= 1;
            if of_address.count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// One machine may have all addresses of a /64 in IPv6: they count as one.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let refused = RefusedConnections::default();
        let places = Places::new(3, 2, 1, refused.clone());
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let first = places.take(one, 0).expect("free");
        // As a socket for both kinds of addresses shows it.
        let _second = places.take(address("::ffff:10.0.0.1"), 0).expect("free");
        assert!(places.take(one, 0).is_err());
        let _third = places.take(other, 0).expect("it has its own");
        assert!(places.take(other, 0).is_err(), "all are taken");
        drop(first);
        let _fourth = places.take(one, 0).expect("given back");
        assert_eq!(refused.counts(), [("node", 1), ("address", 1)]);
    }

    #[test]
    fn a_network_of_one_machine_counts_as_one_and_nothing_is_kept_of_who_is_gone() {
        let places = Places::new(100, 1, 1, RefusedConnections::default());
        let place = places.take(address("2001:db8:1:2::1"), 0).expect("free");
        assert!(places.take(address("2001:db8:1:2:ffff::2"), 0).is_err());
        let next = places.take(address("2001:db8:1:3::1"), 0).expect("another network");
        drop((place, next));
        assert_eq!(places.taken.lock().by_address.len(), 0);
        let unlimited = Places::new(100, 0, 1, RefusedConnections::default());
        let all: Vec<_> = (0..100).map(|_| unlimited.take(address("::1"), 0).expect("free")).collect();
        assert!(unlimited.take(address("::1"), 0).is_err());
        drop(all);
    }

    #[test]
    fn a_connection_goes_to_the_thread_with_the_fewest() {
        let places = Places::new(100, 0, 3, RefusedConnections::default());
        let take = |here| places.take(address("::1"), here).expect("free");
        // Whoever has accepted it keeps it when it may be anybody's.
        let mut taken = vec![take(1), take(1), take(1), take(2)];
        assert_eq!(taken.iter().map(Place::thread).collect::<Vec<_>>(), [1, 0, 2, 2]);
        taken.remove(0);
        assert_eq!(take(2).thread(), 1, "one of its was closed");
    }
}
