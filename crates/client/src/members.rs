//! Who is in a group. Any task.

use std::time::Duration;

use karman_remoting::proto::v2;
use tonic::Code;

use crate::error::ClientError;
use crate::route::resource;
use crate::session::Session;

/// The ids of the members of `group` that read `topic`, as all brokers together know them. Asked of the access point, or of
/// a broker that the session is linked to when that cannot be reached.
pub(crate) async fn members(session: &Session, group: &str, topic: &str) -> Result<Vec<String>, ClientError> {
    let access_point = session.transport.access_point.to_string();
    let others = session.endpoints().into_iter().filter(|other| *other != access_point);
    let mut failure = None;
    for endpoint in std::iter::once(access_point.clone()).chain(others) {
        match members_by(session, &endpoint, group, topic).await {
            Err(error) if error.is_of_connection() => failure = Some(error),
            result => return result,
        }
    }
    Err(failure.expect("at least the access point was asked"))
}

async fn members_by(
    session: &Session,
    endpoint: &str,
    group: &str,
    topic: &str,
) -> Result<Vec<String>, ClientError> {
    let transport = &session.transport;
    let timeout = transport.request_timeout;
    let request = v2::ListConsumerConnectionRequest {
        group: Some(resource(group)),
        topic: Some(resource(topic)),
        ..Default::default()
    };
    let mut service = transport.admin(endpoint)?;
    let call = service.list_consumer_connection(transport.request(request, timeout));
    let response = match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(refused(endpoint, group, timeout, &status)),
        Err(_) => return Err(ClientError::Timeout { endpoint: endpoint.to_owned(), timeout }),
    };
    ClientError::of_status(endpoint, response.status)?;
    Ok(response.client_info.into_iter().map(|client| client.client_id).collect())
}

/// A server without this call and one that does not let the client make it will not do so later either.
fn refused(endpoint: &str, group: &str, timeout: Duration, status: &tonic::Status) -> ClientError {
    let why = match status.code() {
        Code::Unimplemented => format!("{endpoint} does not know the call"),
        Code::PermissionDenied | Code::Unauthenticated => {
            format!("{endpoint} refuses the call: {}", status.message())
        }
        _ => return ClientError::transport(endpoint, timeout, status),
    };
    ClientError::Members { group: group.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_tell_the_members_is_named_with_what_to_do() {
        let told = |status| refused("n:1", "shipping", Duration::from_secs(1), &status);
        let text = told(tonic::Status::unimplemented("")).to_string();
        for part in ["\"shipping\"", "n:1", "ListConsumerConnection", "ByConfiguration"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(matches!(told(tonic::Status::permission_denied("no")), ClientError::Members { .. }));
        assert!(told(tonic::Status::unavailable("")).is_retryable());
    }
}
