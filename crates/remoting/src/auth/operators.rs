//! Operators' calls: who makes one is found from its headers, before anything of it is decoded; what it may do, from what it says.
//! On the data threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::Extensions;
use tonic::metadata::MetadataMap;

use super::operator::{self, Call, NODE, NONCE, SCHEME, SKEW_MAX_MS};
use super::signature::{AUTHORIZATION, Claim, DATE_TIME};
use super::users::User;
use super::{Administers, Auth, Decided, Needs, Peer, Who, source_of, unauthorized};
use crate::civil;
use crate::metadata;
use crate::status::Rejection;
use crate::validate::shortened;

/// Who makes a call, as its headers show. [`super::Gate`] puts it among the call's extensions: it cannot come over a socket.
#[derive(Clone, Debug)]
pub(super) enum Entered {
    /// Another node passes it on, which has decided about it and written it down.
    Relayed,
    Operator(Who),
    /// No operator, and why. The call is one that clients may make, too.
    Client(Rejection),
}

impl Auth {
    /// What operators sign their calls for.
    pub(super) fn node(&self) -> &str {
        &self.0.node
    }

    /// Who makes the call of `path`, or why it is refused whatever it says. A signature is good for one time.
    pub(super) fn enter(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        path: &str,
    ) -> Result<Entered, Rejection> {
        let secret = self.cluster_secret();
        if self.is_relayed_by_node(metadata, extensions)
            && metadata::has_secret(metadata, secret)
            && (!self.is_on() || !secret.is_empty())
        {
            return Ok(Entered::Relayed);
        }
        self.operator(metadata, extensions, path).map(Entered::Operator)
    }

    /// Who operates: where users do not have to say who they are, whoever knows the secret of the cluster, if it has one.
    fn operator(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        path: &str,
    ) -> Result<Who, Rejection> {
        if metadata::carries_secret(metadata, self.cluster_secret()) {
            return Ok(Who::Cluster);
        }
        if !self.is_on() && !self.cluster_secret().is_empty() {
            return Err(unauthorized(
                "this cluster has a secret (clusterSecret) and the call does not carry it",
            ));
        }
        let is_signed = metadata.contains_key(AUTHORIZATION) && !metadata::is_relayed(metadata);
        if !self.is_on() || !is_signed {
            return self.who(metadata, extensions);
        }
        let user = self.signer(metadata, path, now_ms())?;
        extensions.get::<Peer>().map_or(Ok(()), |peer| peer.belongs_to(&user))?;
        Ok(Who::User(user))
    }

    /// Who signed this call, for this node, just now and for the first time.
    fn signer(&self, metadata: &MetadataMap, path: &str, now_ms: u64) -> Result<Arc<User>, Rejection> {
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let header = text(AUTHORIZATION);
        let claim = operator::parse(header).ok_or_else(|| no_operator_s(header))?;
        let users = self.0.users.snapshot();
        let user = users.get(claim.access_key).ok_or_else(|| {
            unauthorized(format!("Username is not matched: {:?}", shortened(claim.access_key)))
        })?;
        let (node, nonce, date_time) = (text(NODE), text(NONCE), text(DATE_TIME));
        if !(Call { path, node, nonce, date_time }).is_signed(&claim, &user.key) {
            return Err(unauthorized(format!("Check signature failed for accessKey={}", user.name)));
        }
        if node != self.node() {
            return Err(unauthorized(format!(
                "User:{} signed this for another node, or before this one was started: an operator's call is for one node; nothing \
                 may stand in between that spreads single calls over nodes",
                user.name
            )));
        }
        let nonce = operator::parse_nonce(nonce).ok_or_else(|| {
            unauthorized(format!("{NONCE} is {:?} and must be 32 digits of 0-9a-f", shortened(nonce)))
        })?;
        let signed_ms = operator::signed_just_now(date_time, now_ms).ok_or_else(|| {
            unauthorized(format!(
                "User:{} signed this at {:?}, and it is {} here: an operator's call must be signed within {} s; set the clocks",
                user.name,
                shortened(date_time),
                civil::format_ms(now_ms),
                SKEW_MAX_MS / 1000
            ))
        })?;
        let taken = self.0.nonces.lock().take(&user.name, nonce, signed_ms, now_ms);
        taken.map_err(|refused| unauthorized(format!("User:{}: {refused}", user.name)))?;
        Ok(user.clone())
    }

    /// Refuses an operator's call that may not be made, and writes into the audit log what was refused, and what changes
    /// something. `cluster` is the name of the cluster; `call` that of the call.
    pub(crate) fn admit_operator<T: Administers>(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        message: &T,
        call: &'static str,
        cluster: &str,
    ) -> Result<(), Rejection> {
        if extensions.get::<Decided>().is_some() {
            return Ok(());
        }
        let who = match extensions.get::<Entered>() {
            Some(Entered::Operator(who)) => Ok(who),
            Some(Entered::Client(why)) => Err(why.clone()),
            // What another node passes on was decided about, and written down, there.
            Some(Entered::Relayed) => return Ok(()),
            None => return Err(unauthorized("the call has not come through the operators' gate")),
        };
        let source = source_of(extensions);
        let decided = who.clone().and_then(|who| match who {
            Who::User(user) if T::SUPER && !user.is_super => Err(unauthorized(format!(
                "User:{} is not a super user, who alone may change users",
                user.name
            ))),
            who => self.allow_in(who, message, source, cluster),
        });
        if T::CHANGES || decided.is_err() {
            audit(call, who.ok(), metadata, source, &needs(message), decided.as_ref().err());
        }
        decided
    }
}

/// Why a header is no signature of an operator.
fn no_operator_s(header: &str) -> Rejection {
    let what = match Claim::parse(header) {
        Some(_) => "a client's signature, which covers the time alone",
        None => "no signature",
    };
    unauthorized(format!(
        "the authorization header is {what}: an operator's call is signed as {SCHEME} Credential=.., Signature=.. over its path, {NODE}, \
         {NONCE} and {DATE_TIME}, as karman of this version does"
    ))
}

/// The rights that a call needs, in words.
fn needs(message: &impl Needs) -> String {
    let mut what = String::new();
    message.needs(&mut |right| {
        let between = if what.is_empty() { "" } else { ", " };
        what.push_str(&format!("{between}{} {}", right.actions, shortened(&right.to_string())));
    });
    what
}

/// One line for each change that operators make or try, and for whatever they are refused.
pub(super) fn audit(
    call: &str,
    who: Option<&Who>,
    metadata: &MetadataMap,
    source: Option<SocketAddr>,
    what: &str,
    refused: Option<&Rejection>,
) {
    let who = who.map_or_else(|| "nobody that is known".to_owned(), Who::to_string);
    let client = metadata::client_id_of(metadata).map(shortened).unwrap_or_default();
    let from = source.map_or_else(String::new, |source| source.to_string());
    match refused {
        None => tracing::info!(target: "audit", call, who, from, client, what, allowed = true, "admin"),
        Some(why) => {
            tracing::warn!(target: "audit", call, who, from, client, what, allowed = false, %why, "admin");
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
