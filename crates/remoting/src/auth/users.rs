//! Users and what they may do, as this node knows them. Any thread; who looks one up takes no lock.
//!
//! Every node keeps all: brokers have them in their logs, and all tell each other over the registration streams. Of two
//! records of one user the later version is kept, so that it does not matter in which order, how often, and from whom a
//! node hears of them. A user that was deleted leaves its name and version behind: who was away must not bring it back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use super::policy::{self, Policies};
use super::signature::{self, Keyed};
use crate::proto::karman::change_user_request::Change;
use crate::proto::karman::{self as v1, UserType};
use crate::quota::{Places, Rates, Refusals, Sends};
use crate::status::Rejection;
use crate::validate::shortened;

/// Users of a cluster.
const USERS_MAX: usize = 10_000;
/// Deleted users that are remembered; beyond, the first deleted are forgotten.
const DELETED_MAX: usize = 10_000;
/// All of them together: they fit into one message between nodes.
const ALL_MAX_BYTES: usize = 16 * 1024 * 1024;
/// One of them: it fits into a call, of which nodes read no more than some MiB before they know who makes it.
const ONE_MAX_BYTES: usize = 512 * 1024;
const SECRET_MIN_BYTES: usize = 8;
const SECRET_MAX_BYTES: usize = 256;
/// That of users from the configuration: whatever was stored is later.
const CONFIGURED: u64 = 1;

impl fmt::Debug for v1::Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A user that may call.
#[derive(Debug)]
pub struct User {
    /// The access key.
    pub name: String,
    /// May do everything.
    pub is_super: bool,
    secret: v1::Secret,
    pub(super) key: Keyed,
    pub(super) policies: Policies,
    /// What it may send in a second.
    pub(super) rates: Rates,
    /// Connections that it may have; 0: as many as it likes.
    pub(super) connections_max: u32,
    pub(super) used: Arc<Used>,
}

/// What a user has of its quotas at this node, whatever becomes of its record.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) sends: Sends,
    pub(super) connections: Arc<Places>,
}

impl User {
    /// Whether it proves itself as `other` did.
    pub(super) fn has_secret_of(&self, other: &Self) -> bool {
        self.secret == other.secret
    }

    /// `before`: as it was known until now.
    fn of(record: &v1::User, before: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        let secret = record.secret.as_ref()?;
        (!record.disabled && !record.deleted).then(|| {
            Arc::new(Self {
                name: record.name.clone(),
                is_super: record.user_type() == UserType::Super,
                secret: secret.clone(),
                key: signature::key(&secret.text),
                policies: Policies::of(&record.policies),
                rates: Rates { messages: record.messages_per_second, bytes: record.bytes_per_second },
                connections_max: record.connections_max,
                used: before.map(|before| before.used.clone()).unwrap_or_default(),
            })
        })
    }
}

/// Who may call, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot(HashMap<String, Arc<User>>);

impl Snapshot {
    /// A user by the name that a call claims.
    pub fn get(&self, name: &str) -> Option<&Arc<User>> {
        self.0.get(name)
    }
}

#[derive(Debug, Default)]
struct State {
    /// With the number of the change that brought it.
    records: BTreeMap<String, (v1::User, u64)>,
    last_change: u64,
}

/// See the module's comment. Cheap to clone: all clones are the same users.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

/// The later of two: by version; of two that were made at the same time at two nodes, the same one everywhere.
fn is_later(one: &v1::User, other: &v1::User) -> bool {
    let key = |user: &v1::User| (user.version, user.deleted, user.encode_to_vec());
    one.version > other.version || one.version == other.version && key(one) > key(other)
}

/// Takes `record` into `records` if it is later than what is there.
pub fn merge_into(records: &mut BTreeMap<String, v1::User>, record: v1::User) {
    if records.get(&record.name).is_none_or(|known| is_later(&record, known)) {
        records.insert(record.name.clone(), record);
    }
    forget_deleted(records, |user| user);
}

/// Drops the deleted users that were deleted first, while there are too many.
fn forget_deleted<T>(records: &mut BTreeMap<String, T>, user: impl Fn(&T) -> &v1::User) {
    if records.len() <= DELETED_MAX {
        return;
    }
    let mut deleted: Vec<(u64, String)> = records
        .values()
        .map(&user)
        .filter(|user| user.deleted)
        .map(|user| (user.version, user.name.clone()))
        .collect();
    if let Some(too_many) = deleted.len().checked_sub(DELETED_MAX) {
        deleted.sort();
        deleted.iter().take(too_many).for_each(|(_, name)| drop(records.remove(name)));
    }
}

impl Users {
    /// Who may call now.
    pub fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.0.snapshot.load()
    }

    /// Takes in what is later than what is known.
    pub fn merge(&self, records: impl IntoIterator<Item = v1::User>) {
        let mut state = self.0.state.lock();
        let mut has_changed = false;
        for record in records {
            let known = state.records.get(&record.name);
            if known.is_none_or(|(known, _)| is_later(&record, known)) {
                state.last_change += 1;
                let change = state.last_change;
                state.records.insert(record.name.clone(), (record, change));
                has_changed = true;
            }
        }
        if !has_changed {
            return;
        }
        forget_deleted(&mut state.records, |(user, _)| user);
        let before = self.0.snapshot.load();
        let users = state.records.values().map(|(record, _)| record);
        let users = users.filter_map(|record| User::of(record, before.get(&record.name)));
        let users = users.map(|user| (user.name.clone(), user)).collect();
        self.0.snapshot.store(Arc::new(Snapshot(users)));
        // Under the lock: the last to store is the last to tell.
        self.0.changes.send_replace(state.last_change);
    }

    /// A super user of the configuration, for when there is none of that name.
    pub fn configure(&self, name: &str, secret: &str) {
        if self.record(name).is_none() {
            self.merge([v1::User {
                name: name.to_owned(),
                secret: Some(v1::Secret { text: secret.to_owned() }),
                user_type: UserType::Super.into(),
                version: CONFIGURED,
                ..Default::default()
            }]);
        }
    }

    /// What is known of a user, also of one that was deleted.
    pub fn record(&self, name: &str) -> Option<v1::User> {
        self.0.state.lock().records.get(name).map(|(record, _)| record.clone())
    }

    /// Everything that changed behind a change, deleted users too, and the number of the last one. Behind 0 is all.
    pub fn since(&self, change: u64) -> (Vec<v1::User>, u64) {
        let state = self.0.state.lock();
        let later = state.records.values().filter(|(_, at)| *at > change);
        (later.map(|(record, _)| record.clone()).collect(), state.last_change)
    }

    /// The number of the last change, and of every one to come.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// All there are, or the one of this name, without secrets.
    pub fn list(&self, name: &str) -> Vec<v1::User> {
        let state = self.0.state.lock();
        let records = state.records.values().map(|(record, _)| record).filter(|record| !record.deleted);
        let asked = records.filter(|record| name.is_empty() || record.name == name);
        asked.map(|record| v1::User { secret: None, ..record.clone() }).collect()
    }

    /// What users were refused at this node because of their quotas.
    pub fn refusals(&self) -> Vec<(String, Refusals)> {
        let snapshot = self.snapshot();
        let mut users: Vec<&Arc<User>> = snapshot.0.values().collect();
        // In the same order every time: who is told apart stays so.
        users.sort_by(|one, other| one.name.cmp(&other.name));
        Refusals::by_name(users.into_iter().map(|user| {
            let connections = user.used.connections.refused();
            (user.name.clone(), Refusals { connections, ..user.used.sends.refusals() })
        }))
    }

    /// The user as `request` wants it, and the version of what it was made from.
    pub fn changed(&self, request: v1::ChangeUserRequest, now_ms: u64) -> Result<(v1::User, u64), Rejection> {
        let state = self.0.state.lock();
        let known = state.records.get(&request.name).map(|(record, _)| record);
        let is_new = known.is_none_or(|known| known.deleted);
        if is_new && state.records.values().filter(|(record, _)| !record.deleted).count() >= USERS_MAX {
            return Err(Rejection::BadRequest(format!("there are {USERS_MAX} users, the most there may be")));
        }
        let based_on = known.map_or(0, |known| known.version);
        let version = now_ms.max(based_on.saturating_add(1));
        let changed = changed(known.filter(|known| !known.deleted), request)?;
        if changed.encoded_len() > ONE_MAX_BYTES {
            return Err(Rejection::BadRequest(format!(
                "the policies of user {:?} would take more than {ONE_MAX_BYTES} bytes; say more with fewer policies",
                changed.name
            )));
        }
        let others = state.records.values().map(|(record, _)| record.encoded_len()).sum::<usize>();
        if others + changed.encoded_len() > ALL_MAX_BYTES {
            return Err(Rejection::BadRequest(format!(
                "users and their policies would take more than {ALL_MAX_BYTES} bytes; say more with fewer policies"
            )));
        }
        Ok((v1::User { version, ..changed }, based_on))
    }
}

/// Pure: what becomes of a user.
fn changed(known: Option<&v1::User>, request: v1::ChangeUserRequest) -> Result<v1::User, Rejection> {
    let name = request.name;
    let missing = || Rejection::UserNotFound { what: format!("user {:?}", shortened(&name)) };
    match request.change {
        Some(Change::Create(new)) => {
            check_name(&name)?;
            if known.is_some() {
                return Err(Rejection::BadRequest(format!(
                    "user {name:?} exists already; change it with an update"
                )));
            }
            check_secret(new.secret.as_ref())?;
            let v1::NewUser { secret, user_type, disabled, .. } = new;
            let (messages_per_second, bytes_per_second) = (new.messages_per_second, new.bytes_per_second);
            let connections_max = new.connections_max;
            let made = v1::User { name, secret, user_type, disabled, ..Default::default() };
            within_reason(v1::User { messages_per_second, bytes_per_second, connections_max, ..made })
        }
        Some(Change::Update(settings)) => {
            let mut user = known.cloned().ok_or_else(missing)?;
            if settings.secret.is_some() {
                check_secret(settings.secret.as_ref())?;
                user.secret = settings.secret;
            }
            if settings.user_type != i32::from(UserType::Unspecified) {
                user.user_type = settings.user_type;
            }
            user.disabled = settings.disabled.unwrap_or(user.disabled);
            user.messages_per_second = settings.messages_per_second.unwrap_or(user.messages_per_second);
            user.bytes_per_second = settings.bytes_per_second.unwrap_or(user.bytes_per_second);
            user.connections_max = settings.connections_max.unwrap_or(user.connections_max);
            within_reason(user)
        }
        Some(Change::Delete(_)) => {
            known.ok_or_else(missing)?;
            Ok(v1::User { name, deleted: true, ..Default::default() })
        }
        Some(Change::PutPolicies(put)) => {
            let mut user = known.cloned().ok_or_else(missing)?;
            for policy in put.policies {
                policy::check(&policy)?;
                user.policies.retain(|known| known.resource != policy.resource);
                user.policies.push(policy);
            }
            user.policies.sort_by(|a, b| a.resource.cmp(&b.resource));
            if user.policies.len() > policy::POLICIES_MAX {
                let (count, max) = (user.policies.len(), policy::POLICIES_MAX);
                return Err(Rejection::BadRequest(format!(
                    "user {name:?} would have {count} policies, the limit is {max}"
                )));
            }
            Ok(user)
        }
        Some(Change::DeletePolicy(resource)) => {
            let mut user = known.cloned().ok_or_else(missing)?;
            let count = user.policies.len();
            user.policies.retain(|known| known.resource != resource);
            if user.policies.len() == count {
                let what = format!("a policy of user {name:?} for {:?}", shortened(&resource));
                return Err(Rejection::UserNotFound { what });
            }
            Ok(user)
        }
        Some(Change::DeletePolicies(_)) => {
            let user = known.cloned().ok_or_else(missing)?;
            Ok(v1::User { policies: Vec::new(), ..user })
        }
        None => Err(Rejection::BadRequest("the request does not say what is to be changed".into())),
    }
}

fn within_reason(user: v1::User) -> Result<v1::User, Rejection> {
    let rates = Rates { messages: user.messages_per_second, bytes: user.bytes_per_second };
    rates.check(&format!("user {:?}", user.name)).map(|()| user)
}

/// Whether there may be a user of this name with this secret.
pub(super) fn is_usable(name: &str, secret: &str) -> bool {
    check_name(name).is_ok() && check_secret(Some(&v1::Secret { text: secret.to_owned() })).is_ok()
}

fn check_name(name: &str) -> Result<(), Rejection> {
    // It stands in a header, up to the first / and , of it.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    let rule = "1 to 64 of a-z A-Z 0-9 - _ . @ are allowed";
    Err(Rejection::BadRequest(format!("user name {:?} is refused: {rule}", shortened(name))))
}

fn check_secret(secret: Option<&v1::Secret>) -> Result<(), Rejection> {
    let length = secret.map_or(0, |secret| secret.text.len());
    if (SECRET_MIN_BYTES..=SECRET_MAX_BYTES).contains(&length) {
        return Ok(());
    }
    Err(Rejection::BadRequest(format!(
        "a secret of {length} bytes is refused: {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} are allowed"
    )))
}

#[cfg(test)]
mod tests;
