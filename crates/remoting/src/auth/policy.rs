//! What policies allow: ACL 2.0 of RocketMQ, decided. Pure; any thread.
//!
//! Of the policies that fit a resource, an action and an address, the most specific one decides: a type of resource before
//! `*`, a name before a prefix, a longer prefix before a shorter one, a prefix before all; of two that are equal the one
//! that denies. Where none fits it is denied.

use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;

use crate::proto::karman as v1;
use crate::status::Rejection;

/// Policies of one user.
pub const POLICIES_MAX: usize = 1000;
/// Addresses and networks of one policy.
const SOURCES_MAX: usize = 256;
/// As long as the longest name of a topic.
const NAME_MAX_BYTES: usize = 255;

/// What is done to a resource. A set of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    /// Sending.
    pub const PUB: Self = Self(1);
    /// Receiving.
    pub const SUB: Self = Self(2);
    /// Making.
    pub const CREATE: Self = Self(4);
    /// Changing.
    pub const UPDATE: Self = Self(8);
    /// Deleting.
    pub const DELETE: Self = Self(16);
    /// Looking at one.
    pub const GET: Self = Self(32);
    /// Looking at all.
    pub const LIST: Self = Self(64);
    /// Whichever there are.
    pub const ALL: Self = Self(127);

    const NAMED: [(&'static str, Self); 9] = [
        ("All", Self::ALL),
        ("Any", Self::ALL),
        ("Pub", Self::PUB),
        ("Sub", Self::SUB),
        ("Create", Self::CREATE),
        ("Update", Self::UPDATE),
        ("Delete", Self::DELETE),
        ("Get", Self::GET),
        ("List", Self::LIST),
    ];

    /// These and those.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether one of them is among `others`.
    pub const fn meets(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    fn parse(word: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, actions)| *actions)
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (name, action) in Self::NAMED.iter().filter(|(_, action)| action.0.count_ones() == 1) {
            if self.meets(*action) {
                write!(f, "{between}{name}")?;
                between = " or ";
            }
        }
        Ok(())
    }
}

/// What there are rights on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Topic,
    Group,
    Cluster,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a call needs: one of these actions on this resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right<'a> {
    /// One of them is enough.
    pub actions: Actions,
    /// Of what.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
}

impl fmt::Display for Right<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.name)
    }
}

/// Which names a policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Literal(String),
    Prefixed(String),
    Any,
}

/// An address with the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    fn holds(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let different = own.to_bits() ^ other.to_bits();
                different.checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let different = own.to_bits() ^ other.to_bits();
                different.checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// One policy, ready to be asked.
#[derive(Clone, Debug)]
struct Entry {
    /// `None`: of any kind.
    kind: Option<Kind>,
    pattern: Pattern,
    actions: Actions,
    /// Empty: from anywhere.
    sources: Vec<Network>,
    allows: bool,
}

impl Entry {
    fn fits(&self, right: Right<'_>, source: Option<IpAddr>) -> bool {
        let is_named = match &self.pattern {
            Pattern::Literal(name) => name == right.name,
            Pattern::Prefixed(prefix) => right.name.starts_with(prefix.as_str()),
            Pattern::Any => true,
        };
        // An address that is not known is in no network.
        let is_from = || {
            self.sources.is_empty()
                || source.is_some_and(|source| self.sources.iter().any(|network| network.holds(source)))
        };
        self.kind.is_none_or(|kind| kind == right.kind)
            && is_named
            && self.actions.meets(right.actions)
            && is_from()
    }

    /// The first in this order decides.
    fn rank(&self) -> impl Ord + use<> {
        let pattern = match &self.pattern {
            Pattern::Literal(_) => (0, Reverse(0)),
            Pattern::Prefixed(prefix) => (1, Reverse(prefix.len())),
            Pattern::Any => (2, Reverse(0)),
        };
        (self.kind.is_none(), pattern, self.allows)
    }
}

/// The policies of one user, ready to be asked: the first that fits decides.
#[derive(Clone, Debug, Default)]
pub struct Policies(Vec<Entry>);

impl Policies {
    /// Of what was stored. A policy that cannot be read (written by a later version) denies what it may be about: it is
    /// kept as one that denies everything, for one that was left out might have been a Deny.
    pub fn of(policies: &[v1::Policy]) -> Self {
        let unreadable = || Entry {
            kind: None,
            pattern: Pattern::Any,
            actions: Actions::ALL,
            sources: Vec::new(),
            allows: false,
        };
        let mut entries: Vec<Entry> =
            policies.iter().map(|policy| entry(policy).unwrap_or_else(|_| unreadable())).collect();
        entries.sort_by_key(Entry::rank);
        Self(entries)
    }

    /// Whether they allow it; why not.
    pub fn decide(&self, right: Right<'_>, source: Option<IpAddr>) -> Result<(), &'static str> {
        match self.0.iter().find(|entry| entry.fits(right, source)) {
            Some(entry) if entry.allows => Ok(()),
            Some(_) => Err("the decision is deny."),
            None => Err("no matched policies."),
        }
    }
}

/// Refuses what is no policy, and says what is.
pub fn check(policy: &v1::Policy) -> Result<(), Rejection> {
    entry(policy).map(drop)
}

fn entry(policy: &v1::Policy) -> Result<Entry, Rejection> {
    let refused = |what: &str, rule: &str| Rejection::BadRequest(format!("{what} is refused: {rule}"));
    let (kind, pattern) = resource(&policy.resource).ok_or_else(|| {
        refused(
            &format!("resource {:?}", policy.resource),
            "it is *, or Topic:, Group: or Cluster: with a name, with the beginning of names and a *, or with *",
        )
    })?;
    if policy.actions.is_empty() {
        return Err(refused(
            "a policy without actions",
            "it names All, or some of Pub Sub Create Update Delete Get List",
        ));
    }
    let mut actions = Actions(0);
    for word in &policy.actions {
        let known = Actions::parse(word).ok_or_else(|| {
            refused(&format!("action {word:?}"), "there are All Pub Sub Create Update Delete Get List")
        })?;
        actions = actions.or(known);
    }
    if policy.source_ips.len() > SOURCES_MAX {
        return Err(refused("the list of addresses", "a policy has 256 at most; name networks"));
    }
    let network = |text: &String| {
        Network::parse(text).ok_or_else(|| {
            refused(&format!("address {text:?}"), "it is an IP address, or a network as 10.0.0.0/8")
        })
    };
    let sources = policy.source_ips.iter().map(network).collect::<Result<_, _>>()?;
    let allows = match policy.decision() {
        v1::Decision::Allow => true,
        v1::Decision::Deny => false,
        v1::Decision::Unspecified => {
            return Err(refused("a policy without a decision", "it is Allow or Deny"));
        }
    };
    Ok(Entry { kind, pattern, actions, sources, allows })
}

fn resource(text: &str) -> Option<(Option<Kind>, Pattern)> {
    if text == "*" {
        return Some((None, Pattern::Any));
    }
    let (kind, name) = text.split_once(':')?;
    let kinds = [Kind::Topic, Kind::Group, Kind::Cluster];
    let kind = kinds.into_iter().find(|known| known.to_string().eq_ignore_ascii_case(kind))?;
    let is_name = |name: &str| !name.is_empty() && name.len() <= NAME_MAX_BYTES && !name.contains('*');
    let pattern = match name.strip_suffix('*') {
        Some("") => Pattern::Any,
        Some(prefix) => Pattern::Prefixed(Some(prefix).filter(|prefix| is_name(prefix))?.to_owned()),
        None => Pattern::Literal(Some(name).filter(|name| is_name(name))?.to_owned()),
    };
    Some((Some(kind), pattern))
}

#[cfg(test)]
mod tests;
