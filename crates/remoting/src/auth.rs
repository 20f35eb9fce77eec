//! Who calls, and whether it may: authentication and authorisation at the door.
//!
//! The node a client is connected to decides, once, and nobody behind it: a call between nodes carries the cluster's
//! secret and is believed. Off by default, as in RocketMQ. When it is on, a call without a valid signature is refused, and,
//! with `authorizationEnabled`, whatever no policy of its user allows.
//!
//! On the data threads: a call costs two look-ups without a lock, and no signature is verified twice in a row on one
//! connection.

pub mod credentials;
mod gate;
mod nonces;
pub mod operator;
mod operators;
mod peer;
pub mod policy;
mod rights;
pub mod signature;
mod signed_channel;
pub mod users;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Extensions, Request};

pub use self::gate::Gate;
use self::nonces::Nonces;
pub use self::peer::Peer;
use self::peer::Verified;
use self::policy::{Kind, Right};
pub use self::rights::{Administers, Needs};
use self::signature::{AUTHORIZATION, Claim, DATE_TIME};
pub use self::signed_channel::SignedChannel;
use self::users::{Snapshot, User, Users};
use crate::config::Unusable;
use crate::metadata;
use crate::secret::Secret;
use crate::status::Rejection;

/// What is asked of callers: keys of the configuration, whose names are RocketMQ's.
#[derive(Clone, Default)]
pub struct AuthConfig {
    /// `authenticationEnabled`
    pub authentication: bool,
    /// `authorizationEnabled`
    pub authorization: bool,
    /// `initAuthenticationUser`
    pub initial_user: Secret,
    /// `clusterSecret`
    pub cluster_secret: Secret,
    /// Nodes know one another by certificates (`internalTlsCaPath`): the secret alone makes no node.
    pub nodes_have_tls: bool,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authentication, authorization, .. } = self;
        f.debug_struct("AuthConfig")
            .field("authentication", authentication)
            .field("authorization", authorization)
            .finish_non_exhaustive()
    }
}

impl AuthConfig {
    /// What is asked of each value, and whether it is so.
    pub fn rules(&self) -> [(Unusable, bool); 3] {
        let rule =
            |key, value: &str, allowed, good| (Unusable { key, value: value.to_owned(), allowed }, good);
        let initial = &self.initial_user;
        [
            rule(
                "authorizationEnabled",
                if self.authorization { "true" } else { "false" },
                "it needs authenticationEnabled = true: what a caller may do follows from who it is",
                self.authentication || !self.authorization,
            ),
            rule(
                "clusterSecret",
                self.cluster_secret.shown(),
                "authenticationEnabled needs one: calls between nodes are believed by it",
                !self.authentication || !self.cluster_secret.is_empty(),
            ),
            rule(
                "initAuthenticationUser",
                initial.shown(),
                "it is {\"username\":\"NAME\",\"password\":\"SECRET\"} or NAME:SECRET, the secret of 8 bytes or more",
                initial.is_empty() || initial_user(initial.reveal()).is_some(),
            ),
        ]
    }
}

/// Name and secret, in RocketMQ's form or in short.
fn initial_user(text: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Credentials {
        username: String,
        password: String,
    }
    let (name, secret) = match text.trim().starts_with('{') {
        true => serde_json::from_str(text).ok().map(|user: Credentials| (user.username, user.password))?,
        false => text.split_once(':').map(|(name, secret)| (name.to_owned(), secret.to_owned()))?,
    };
    users::is_usable(&name, &secret).then_some((name, secret))
}

/// Marks a call that this node makes of itself for one that may be made: it cannot come over a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decided;

/// Where a call comes from, by the connection that carried it.
pub fn source_of(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<Peer>()?.address
}

/// Decides about calls. A clone decides the same.
#[derive(Clone, Debug)]
pub struct Auth(Arc<Rules>);

struct Rules {
    config: AuthConfig,
    users: Users,
    /// What operators sign their calls for: a number that no other node has, nor this one after a restart.
    node: String,
    /// Of operators' calls that were taken.
    nonces: Mutex<Nonces>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

/// Who made a call that may be made.
#[derive(Clone, Debug)]
pub enum Who {
    /// Nobody has to say who calls.
    Anyone,
    /// Another node, or an operator with the cluster's secret.
    Cluster,
    /// One that proved who it is.
    User(Arc<User>),
}

impl Who {
    /// Counts a send in the quotas of its user; refuses what is too much. A door that relays has counted it already.
    pub fn may_send(&self, messages: &[Bytes]) -> Result<(), Rejection> {
        let Self::User(user) = self else { return Ok(()) };
        if user.rates.is_unlimited() {
            return Ok(());
        }
        let name = &user.name;
        let amount = (messages.len() as u64, messages.iter().map(|message| message.len() as u64).sum());
        let (whose, remedy) = (format_args!("user {name:?}"), format_args!("karman user update {name}"));
        user.used.sends.take(user.rates, amount, Instant::now(), whose, remedy)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Cluster => f.write_str("the cluster secret"),
            Self::User(user) => write!(f, "User:{}", user.name),
        }
    }
}

impl Auth {
    /// Decides by `users`. The initial user of the configuration is made when there is none of its name.
    pub fn new(config: AuthConfig, users: Users) -> Self {
        if let Some((name, secret)) = initial_user(config.initial_user.reveal()) {
            users.configure(&name, &secret);
        }
        Self(Arc::new(Rules { config, users, node: operator::random(), nonces: Mutex::default() }))
    }

    /// Everybody may do everything; operators need the cluster's secret where there is one.
    pub fn off(cluster_secret: Secret) -> Self {
        Self::new(AuthConfig { cluster_secret, ..AuthConfig::default() }, Users::default())
    }

    /// Who there is.
    pub fn users(&self) -> &Users {
        &self.0.users
    }

    /// `clusterSecret`
    pub fn cluster_secret(&self) -> &Secret {
        &self.0.config.cluster_secret
    }

    /// Whether callers have to say who they are.
    pub fn is_on(&self) -> bool {
        self.0.config.authentication
    }

    /// Who makes a client's call; refuses one that may not be made.
    pub fn admit<T: Needs>(&self, request: &Request<T>) -> Result<Who, Rejection> {
        if !self.is_on() {
            return Ok(Who::Anyone);
        }
        let who = self.who(request.metadata(), request.extensions())?;
        self.allow(&who, request.get_ref(), source_of(request.extensions()))?;
        Ok(who)
    }

    /// It says that a node has relayed it, and came as nodes come.
    fn is_relayed_by_node(&self, metadata: &MetadataMap, extensions: &Extensions) -> bool {
        metadata::is_relayed(metadata)
            && (!self.0.config.nodes_have_tls || extensions.get::<Peer>().is_some_and(Peer::is_node))
    }

    /// Who calls, where it has to be known.
    pub fn who(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Who, Rejection> {
        if !self.is_on() {
            return Ok(Who::Anyone);
        }
        if extensions.get::<Decided>().is_some() {
            return Ok(Who::Cluster);
        }
        let is_relayed = metadata::is_relayed(metadata);
        if is_relayed && !self.is_relayed_by_node(metadata, extensions) {
            return Err(unauthorized("a call between nodes that did not come with the certificate of one"));
        }
        if metadata::carries_secret(metadata, self.cluster_secret()) {
            return Ok(Who::Cluster);
        }
        if is_relayed {
            return Err(unauthorized("a call between nodes that does not carry the secret of the cluster"));
        }
        self.authenticate(metadata, extensions.get::<Peer>()).map(Who::User)
    }

    /// Whether `who` may do what `call` does.
    pub fn allow(&self, who: &Who, call: &impl Needs, source: Option<SocketAddr>) -> Result<(), Rejection> {
        self.allow_in(who, call, source, "")
    }

    fn allow_in(
        &self,
        who: &Who,
        call: &impl Needs,
        source: Option<SocketAddr>,
        cluster: &str,
    ) -> Result<(), Rejection> {
        let Who::User(user) = who else { return Ok(()) };
        if !self.0.config.authorization || user.is_super {
            return Ok(());
        }
        let source = source.map(|source| source.ip().to_canonical());
        let mut refused = None;
        call.needs(&mut |right| {
            if refused.is_none() {
                let name = if right.kind == Kind::Cluster { cluster } else { right.name };
                refused = decide(user, Right { name, ..right }, source).err();
            }
        });
        refused.map_or(Ok(()), Err)
    }

    /// Whether who was let in earlier still would be: users change while long calls are under way.
    pub(crate) fn still_allows(
        &self,
        who: &Who,
        call: &impl Needs,
        source: Option<SocketAddr>,
    ) -> Result<(), Rejection> {
        let Who::User(user) = who else { return Ok(()) };
        let known = self.0.users.snapshot().get(&user.name).cloned();
        let known = known.filter(|known| known.has_secret_of(user));
        let known = known.ok_or_else(|| unauthorized("the user was changed, or is no more"))?;
        self.allow(&Who::User(known), call, source)
    }

    fn authenticate(&self, metadata: &MetadataMap, peer: Option<&Peer>) -> Result<Arc<User>, Rejection> {
        let users = self.0.users.snapshot();
        let Some(authorization) = metadata.get(AUTHORIZATION) else {
            let user = certified(&users, peer)?;
            peer.map_or(Ok(()), |peer| peer.belongs_to(&user))?;
            return Ok(user);
        };
        let date_time = metadata.get(DATE_TIME);
        let last = peer.map(|peer| peer.verified.load());
        if let Some(last) = last.as_ref().and_then(|last| (**last).as_ref())
            && last.authorization == *authorization
            && last.date_time.as_ref() == date_time
            && users.get(&last.user.name).is_some_and(|user| Arc::ptr_eq(user, &last.user))
        {
            return Ok(last.user.clone());
        }
        let user = verify(&users, authorization, date_time)?;
        if let Some(peer) = peer {
            peer.belongs_to(&user)?;
            let (authorization, date_time) = (authorization.clone(), date_time.cloned());
            peer.verified.store(Some(Arc::new(Verified { authorization, date_time, user: user.clone() })));
        }
        Ok(user)
    }
}

/// Who calls by the certificate of the connection, where the call itself does not say it.
fn certified(users: &Snapshot, peer: Option<&Peer>) -> Result<Arc<User>, Rejection> {
    let name = peer
        .and_then(|peer| peer.certified.as_deref())
        .ok_or_else(|| unauthorized("the call has no authorization header; give the client credentials"))?;
    users.get(name).cloned().ok_or_else(|| {
        let name = crate::validate::shortened(name);
        unauthorized(format!("Username is not matched: {name:?}, as the certificate of the client says"))
    })
}

fn verify(
    users: &Snapshot,
    authorization: &AsciiMetadataValue,
    date_time: Option<&AsciiMetadataValue>,
) -> Result<Arc<User>, Rejection> {
    let claim = authorization.to_str().ok().and_then(Claim::parse).ok_or_else(|| {
        unauthorized(
            "the authorization header is not of the form MQv2-HMAC-SHA1 Credential=.., SignedHeaders=x-mq-date-time, Signature=..",
        )
    })?;
    let unknown = || {
        unauthorized(format!("Username is not matched: {:?}", crate::validate::shortened(claim.access_key)))
    };
    let user = users.get(claim.access_key).ok_or_else(unknown)?;
    let date_time = date_time.and_then(|date_time| date_time.to_str().ok()).unwrap_or_default();
    if !claim.is_of(&user.key, date_time) {
        return Err(unauthorized(format!("Check signature failed for accessKey={}", user.name)));
    }
    Ok(user.clone())
}

fn unauthorized(text: impl Into<String>) -> Rejection {
    Rejection::Unauthorized(text.into())
}

fn decide(user: &User, right: Right<'_>, source: Option<IpAddr>) -> Result<(), Rejection> {
    user.policies.decide(right, source).map_err(|why| {
        let from = source.map_or_else(|| "an unknown address".to_owned(), |source| source.to_string());
        // The words are RocketMQ's; the action is ours.
        unauthorized(format!(
            "User:{} has no permission to access {right} from {from}, {why} ({} is needed)",
            user.name, right.actions
        ))
    })
}

#[cfg(test)]
mod tests;
