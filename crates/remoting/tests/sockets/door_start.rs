//! What a door says of brokers and topics that it does not know yet, or not any more.

use std::time::{Duration, Instant};

use karman_remoting::metadata;
use karman_remoting::proto::karman::RouteChange;
use karman_remoting::proto::karman::route_change::Change;
use karman_remoting::proto::v2::{self, Code};
use karman_remoting::token::{TokenKey, TransactionId};
use tonic::Request;

use crate::door::{Node, cluster, code, from, queue, resource, sending, state};
use crate::support::*;

async fn end_transaction_at(door: &Node, broker: &str) -> Code {
    let id = TransactionId { broker: broker.into(), topic_id: 1, half_id: 2, check_ms: 3 };
    let transaction_id = id.encode(&TokenKey::new([7; 32]));
    let end = v2::EndTransactionRequest { transaction_id, ..Default::default() };
    code(soon(door.client().end_transaction(from("c", end))).await.expect("answered").into_inner().status)
}

async fn get_offset_at(door: &Node, broker: &str) -> Code {
    let get = v2::GetOffsetRequest { group: resource("g"), message_queue: queue("normal", broker) };
    code(soon(door.client().get_offset(from("c", get))).await.expect("answered").into_inner().status)
}

#[tokio::test]
async fn a_broker_that_is_expected_back_is_out_of_reach_and_not_unknown() {
    let [_a, _b, namesrv] = cluster();
    namesrv.routes.apply(RouteChange { change: Some(Change::Left("b".into())) });
    for (broker, expected) in [("b", Code::InternalServerError), ("c", Code::BadRequest)] {
        assert_eq!(end_transaction_at(&namesrv, broker).await, expected, "{broker}");
        assert_eq!(get_offset_at(&namesrv, broker).await, expected, "{broker}");
    }
    // Who has just started cannot tell one that left from one that has not come yet.
    namesrv.routes.begin_to_learn();
    assert_eq!(end_transaction_at(&namesrv, "c").await, Code::InternalServerError);
    namesrv.routes.end_to_learn();
    assert_eq!(end_transaction_at(&namesrv, "c").await, Code::BadRequest);
}

#[tokio::test]
async fn a_node_that_has_just_started_waits_for_the_broker_of_a_call() {
    let (broker, namesrv) = (Node::start(Some("a")), Node::start(None));
    namesrv.routes.begin_to_learn();
    let mut ending = std::pin::pin!(end_transaction_at(&namesrv, "a"));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut ending).await;
    assert!(early.is_err(), "answered without waiting: {early:?}");
    namesrv.routes.apply(state("a", &broker));
    namesrv.routes.end_to_learn();
    assert_eq!(ending.await, Code::Ok);
}

fn route() -> v2::QueryRouteRequest {
    v2::QueryRouteRequest { topic: resource("normal"), endpoints: None }
}

fn assignment() -> v2::QueryAssignmentRequest {
    v2::QueryAssignmentRequest { topic: resource("normal"), group: resource("g"), endpoints: None }
}

#[tokio::test]
async fn a_node_that_has_just_started_waits_for_the_brokers_before_it_denies_a_topic() {
    let (broker, namesrv) = (Node::start(Some("a")), Node::start(None));
    namesrv.routes.begin_to_learn();
    let (mut one, mut other) = (namesrv.client(), namesrv.client());
    let mut asking = tokio::spawn(async move {
        let (route, assigned) = tokio::join!(
            one.query_route(from("c", route())),
            other.query_assignment(from("c", assignment()))
        );
        [route.expect("answered").into_inner().status, assigned.expect("answered").into_inner().status]
    });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut asking).await;
    assert!(early.is_err(), "answered without waiting: {early:?}");
    namesrv.routes.apply(state("a", &broker));
    namesrv.routes.end_to_learn();
    let found = soon(asking).await.expect("no panic");
    assert_eq!(found.map(code), [Code::Ok; 2]);
}

#[tokio::test]
async fn a_topic_that_nobody_registers_is_denied_before_the_client_gives_up() {
    let namesrv = Node::start(None);
    namesrv.routes.begin_to_learn();
    let asked = Instant::now();
    let answer = soon(namesrv.client().query_route(from("c", route()))).await.expect("answered");
    assert_eq!(code(answer.into_inner().status), Code::TopicNotFound);
    let took = asked.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&took), "{took:?}");
}

fn passed_on<T>(message: T) -> Request<T> {
    let mut request = from("c", message);
    *request.metadata_mut() = metadata::for_relay(request.metadata());
    request
}

/// It was the master a moment ago, and the other door has not heard yet that it is not.
#[tokio::test]
async fn what_a_door_passes_on_to_a_node_that_is_no_master_any_more_is_to_be_repeated() {
    let [_a, _b, namesrv] = cluster();
    let key = TokenKey::new([7; 32]);
    let transaction_id =
        TransactionId { broker: "b".into(), topic_id: 1, half_id: 2, check_ms: 3 }.encode(&key);
    let mut client = namesrv.client();
    let again = |status: Option<v2::Status>| {
        assert!(status.as_ref().is_some_and(|status| status.message.contains("send again")), "{status:?}");
        assert_eq!(code(status), Code::InternalServerError);
    };
    let end = v2::EndTransactionRequest { transaction_id, ..Default::default() };
    again(soon(client.end_transaction(passed_on(end))).await.expect("answered").into_inner().status);
    let send = passed_on(sending("normal", &[""]));
    again(soon(client.send_message(send)).await.expect("answered").into_inner().status);
    let receive = v2::ReceiveMessageRequest { message_queue: queue("normal", ""), ..Default::default() };
    let mut frames = soon(client.receive_message(passed_on(receive))).await.expect("answered").into_inner();
    let frame = soon(frames.message()).await.expect("no error").expect("a frame");
    match frame.content {
        Some(v2::receive_message_response::Content::Status(status)) => again(Some(status)),
        other => panic!("{other:?}"),
    }
}
