//! Putting the answers of several brokers together. Pure.

use std::cmp::Reverse;

use crate::proto::karman::query_messages_request::By;
use crate::proto::karman::{self as v1, BrokerIdentity};
use crate::proto::v2::{Code, Status};
use crate::status::{Answer, Rejection, ok, summary};

/// Messages of a query that does not say how many it wants, and bytes of those of one answer.
const QUERY_MAX_DEFAULT: usize = 32;
const QUERY_MAX_BYTES: usize = 4 << 20;
/// Letters that were left where they are and are named.
const SKIPPED_MAX: usize = 32;

/// What one broker answered, or why it did not.
pub(super) type Answered<T> = (BrokerIdentity, Result<T, Status>);

/// The whole answer, or the refusal in the same form.
pub(super) fn respond<T: Answer>(result: Result<T, Status>) -> Result<tonic::Response<T>, tonic::Status> {
    Ok(tonic::Response::new(result.unwrap_or_else(T::of)))
}

pub(super) fn no_broker() -> Rejection {
    Rejection::Internal("no broker is registered; start one, or wait a second after its start".into())
}

/// The rows of a call that changes something, and the status over them.
pub(super) fn results<T>(answers: Vec<Answered<T>>) -> (Status, Vec<v1::BrokerResult>) {
    if answers.is_empty() {
        return (no_broker().into(), vec![]);
    }
    let row = |(broker, answer): Answered<T>| v1::BrokerResult {
        broker_name: broker.broker_name,
        status: Some(answer.map_or_else(|status| status, |_| ok())),
    };
    let rows: Vec<_> = answers.into_iter().map(row).collect();
    (summary(rows.iter().filter_map(|row| row.status.as_ref())), rows)
}

/// Leaves out the brokers that say `code`, unless all do: what they do not have they need not change.
pub(super) fn without<T>(answers: Vec<Answered<T>>, code: Code) -> Vec<Answered<T>> {
    let says = |answer: &Answered<T>| answer.1.as_ref().is_err_and(|status| status.code() == code);
    match answers.iter().all(says) {
        true => answers,
        false => answers.into_iter().filter(|answer| !says(answer)).collect(),
    }
}

/// Puts lists together; a broker that failed fails the whole, since a list with a hole would look complete.
pub(super) fn collected<T, R>(
    answers: Vec<Answered<T>>,
    rows_of: impl Fn(T) -> Vec<R>,
) -> Result<Vec<R>, Status> {
    let mut rows = Vec::new();
    for (_, answer) in answers {
        rows.extend(rows_of(answer?));
    }
    Ok(rows)
}

/// What the one broker that was asked answered.
pub(super) fn only<T>(answers: Vec<Answered<T>>) -> Result<T, Status> {
    answers.into_iter().next().ok_or_else(|| no_broker().into()).and_then(|(_, answer)| answer)
}

/// A topic on all brokers. One without the topic has no rows; nobody having it is an error.
pub(super) fn topic(
    name: String,
    parts: Vec<v1::DescribeTopicResponse>,
) -> Result<v1::DescribeTopicResponse, Status> {
    let mut whole = v1::DescribeTopicResponse { status: Some(ok()), ..Default::default() };
    for part in parts {
        whole.topics.extend(part.topics);
        whole.queues.extend(part.queues);
    }
    if whole.topics.is_empty() { Err(Rejection::TopicNotFound { topic: name }.into()) } else { Ok(whole) }
}

/// A group on all brokers. One without the group says only which of its clients it knows.
pub(super) fn group(
    name: String,
    parts: Vec<v1::DescribeGroupResponse>,
) -> Result<v1::DescribeGroupResponse, Status> {
    let mut whole = v1::DescribeGroupResponse { status: Some(ok()), ..Default::default() };
    for part in parts {
        whole.groups.extend(part.groups);
        whole.queues.extend(part.queues);
        whole.clients.extend(part.clients);
        whole.contradictions.extend(part.contradictions);
        whole.truncated |= part.truncated;
    }
    // Clients tell every broker the same.
    whole.clients.sort_by_key(|client| (client.client_id.clone(), Reverse(client.heard_ms)));
    whole.clients.dedup_by(|a, b| a.client_id == b.client_id);
    whole.contradictions.sort();
    whole.contradictions.dedup();
    if whole.groups.is_empty() { Err(Rejection::GroupNotFound { group: name }.into()) } else { Ok(whole) }
}

/// Clients as several brokers know them.
pub(super) fn clients(parts: Vec<v1::ListClientsResponse>) -> v1::ListClientsResponse {
    let truncated = parts.iter().any(|part| part.truncated);
    let mut clients: Vec<_> = parts.into_iter().flat_map(|part| part.clients).collect();
    clients.sort_by(|a, b| (&a.client_id, &a.broker_name).cmp(&(&b.client_id, &b.broker_name)));
    v1::ListClientsResponse { status: Some(ok()), clients, truncated }
}

/// What was moved, also when a broker failed: it is said which.
pub(super) fn moved(answers: Vec<Answered<v1::ResetOffsetResponse>>) -> v1::ResetOffsetResponse {
    let mut whole = v1::ResetOffsetResponse { status: Some(ok()), ..Default::default() };
    for (broker, answer) in answers {
        match answer {
            Ok(part) => whole.moves.extend(part.moves),
            Err(status) => failed(&mut whole.status, &broker, &status),
        }
    }
    whole
}

/// Says which broker failed, and why: beside those that failed before it, under the code of the first.
fn failed(whole: &mut Option<Status>, broker: &BrokerIdentity, status: &Status) {
    let message = format!("broker {:?}: {}", broker.broker_name, status.message);
    match whole {
        Some(before) if before.code() != Code::Ok => before.message += &format!("; {message}"),
        _ => *whole = Some(Status { code: status.code, message }),
    }
}

/// What a client said to the first broker that could ask it; else why none could, in the words that say most.
pub(super) fn asked(
    client_id: String,
    answers: Vec<Answered<v1::AskClientResponse>>,
) -> Result<v1::AskClientResponse, Status> {
    let mut refused: Option<Status> = None;
    for (_, answer) in answers {
        match answer {
            Ok(answer) => return Ok(answer),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => refused = Some(status),
        }
    }
    Err(refused.unwrap_or_else(|| Rejection::ClientNotConnected { client_id }.into()))
}

/// Dead letters that all brokers sent back. What the others did is said although one failed.
pub(super) fn redriven(
    answers: Vec<Answered<v1::RedriveDeadLettersResponse>>,
) -> v1::RedriveDeadLettersResponse {
    let mut whole = v1::RedriveDeadLettersResponse { status: Some(ok()), ..Default::default() };
    for (broker, answer) in answers {
        match answer {
            Ok(part) => {
                whole.count += part.count;
                whole.more |= part.more;
                whole.skipped.extend(part.skipped);
                if let Some(status) = part.failure {
                    failed(&mut whole.status, &broker, &status);
                }
            }
            Err(status) => failed(&mut whole.status, &broker, &status),
        }
    }
    whole.skipped.truncate(SKIPPED_MAX);
    whole
}

/// The answers of several brokers as one: in the order of the question, no more than were asked for or fit an answer.
pub(super) fn messages(
    parts: Vec<v1::QueryMessagesResponse>,
    by: Option<&By>,
    max: u32,
) -> v1::QueryMessagesResponse {
    let max = if max == 0 { QUERY_MAX_DEFAULT } else { max as usize };
    let mut truncated = parts.iter().any(|part| part.truncated);
    let mut messages: Vec<_> = parts.into_iter().flat_map(|part| part.messages).collect();
    messages.sort_by_key(|message| (message.store_time_ms, message.physical_offset));
    // What was asked for by place or time is read on from there; of what has a name the last is the news.
    if !matches!(by, Some(By::Queue(_) | By::Time(_))) {
        messages.reverse();
    }
    let (mut bytes, mut kept) = (0, 0);
    for message in messages.iter().take(max) {
        bytes += message.message.len();
        // A single one may be larger.
        if kept > 0 && bytes > QUERY_MAX_BYTES {
            break;
        }
        kept += 1;
    }
    truncated |= kept < messages.len();
    messages.truncate(kept);
    v1::QueryMessagesResponse { status: Some(ok()), messages, truncated }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered<T>(name: &str, answer: Result<T, Rejection>) -> Answered<T> {
        let broker = BrokerIdentity { broker_name: name.into(), ..Default::default() };
        (broker, answer.map_err(Status::from))
    }

    fn no_topic() -> Rejection {
        Rejection::TopicNotFound { topic: "t".into() }
    }

    #[test]
    fn who_has_no_such_topic_does_not_spoil_the_answer_unless_nobody_has_it() {
        let mixed = vec![answered("a", Ok(())), answered("b", Err(no_topic()))];
        let (status, rows) = results(without(mixed, Code::TopicNotFound));
        assert_eq!((status.code(), rows.len(), rows[0].broker_name.as_str()), (Code::Ok, 1, "a"));
        let none = vec![answered::<()>("a", Err(no_topic())), answered("b", Err(no_topic()))];
        let (status, rows) = results(without(none, Code::TopicNotFound));
        assert_eq!((status.code(), rows.len()), (Code::TopicNotFound, 2));
    }

    #[test]
    fn messages_of_two_brokers_are_in_the_order_of_the_question() {
        let stored = |at: u64| v1::StoredMessage { store_time_ms: at, ..Default::default() };
        let part = |times: &[u64]| v1::QueryMessagesResponse {
            messages: times.iter().copied().map(stored).collect(),
            ..Default::default()
        };
        let times = |by: By, max| {
            let whole = messages(vec![part(&[1, 4]), part(&[3, 2])], Some(&by), max);
            let times: Vec<u64> = whole.messages.iter().map(|message| message.store_time_ms).collect();
            (times, whole.truncated)
        };
        assert_eq!(times(By::Key("k".into()), 3), (vec![4, 3, 2], true));
        assert_eq!(times(By::Time(true), 0), (vec![1, 2, 3, 4], false));
    }

    #[test]
    fn a_client_that_several_brokers_know_is_one_client() {
        let client =
            |id: &str, heard_ms| v1::ClientState { client_id: id.into(), heard_ms, ..Default::default() };
        let part = |clients| v1::DescribeGroupResponse {
            groups: vec![v1::GroupConfig::default()],
            clients,
            contradictions: vec!["c".into()],
            ..Default::default()
        };
        let parts = vec![part(vec![client("x", 1), client("y", 2)]), part(vec![client("x", 3)])];
        let whole = group("g".into(), parts).unwrap();
        let heard: Vec<_> = whole.clients.iter().map(|client| client.heard_ms).collect();
        assert_eq!((heard, whole.contradictions.len()), (vec![3, 2], 1));
        assert!(group("g".into(), vec![]).is_err());
    }

    #[test]
    fn a_broker_that_failed_does_not_hide_what_the_others_sent_back() {
        let sent = |count, failure: Option<Rejection>| v1::RedriveDeadLettersResponse {
            count,
            failure: failure.map(Status::from),
            status: Some(ok()),
            ..Default::default()
        };
        let moved_one =
            v1::ResetOffsetResponse { moves: vec![v1::OffsetMove::default()], ..Default::default() };
        let full = || Rejection::StoreFull("no room".into());
        let whole = redriven(vec![
            answered("a", Ok(sent(3, None))),
            answered("b", Err(full())),
            answered("c", Ok(sent(2, Some(full())))),
        ]);
        let moves =
            moved(vec![answered("b", Err(full())), answered("c", Err(full())), answered("a", Ok(moved_one))]);
        assert_eq!((whole.count, moves.moves.len()), (5, 1));
        for status in [whole.status.unwrap(), moves.status.unwrap()] {
            assert_eq!(status.code(), Code::InternalServerError);
            assert!(
                ["\"b\"", "\"c\""].iter().all(|name| status.message.contains(name)),
                "{}",
                status.message
            );
        }
    }
}
