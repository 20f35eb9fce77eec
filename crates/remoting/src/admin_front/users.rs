//! Users: a change is made from what this node knows and stored by every broker; all nodes hear of it then.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::merge::{self, Answered};
use super::{AdminFront, BROKER_TIMEOUT};
use crate::proto::karman::{self as v1, BrokerIdentity};
use crate::proto::v2::Code;
use crate::relay::failure;
use crate::status::{Answer as _, Rejection, ok};
use crate::validate::shortened;

impl AdminFront {
    /// Whoever could store it: a broker that was away hears of it from the others. At this node it counts when the
    /// answer comes, elsewhere within a second.
    pub(super) async fn change_user_everywhere(
        &self,
        metadata: &MetadataMap,
        message: v1::ChangeUserRequest,
    ) -> v1::ChangeUserResponse {
        self.routes.learnt().await;
        let users = self.auth.users();
        let (user, based_on) = match users.changed(message, now_ms()) {
            Ok(changed) => changed,
            Err(rejection) => return rejection.into(),
        };
        let store = v1::StoreUserRequest { user: Some(user.clone()), based_on };
        let answers: Vec<Answered<v1::StoreUserResponse>> =
            on_brokers!(self, self.brokers(), store_user, metadata, store);
        let (status, brokers) = merge::results(answers);
        let is_stored =
            brokers.iter().any(|row| row.status.as_ref().is_some_and(|status| status.code() == Code::Ok));
        if is_stored {
            let v1::User { name, deleted, disabled, policies, .. } = &user;
            let policies = policies.len();
            tracing::info!(target: "audit", user = name, deleted, disabled, policies, "user changed");
            users.merge([user]);
        }
        v1::ChangeUserResponse { status: Some(status), brokers }
    }

    pub(super) fn users_known(&self, name: &str) -> Result<v1::ListUsersResponse, Rejection> {
        let users = self.auth.users().list(name);
        if users.is_empty() && !name.is_empty() {
            return Err(Rejection::UserNotFound { what: format!("user {:?}", shortened(name)) });
        }
        Ok(v1::ListUsersResponse { status: Some(ok()), users })
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
