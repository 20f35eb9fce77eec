//! What a door says of brokers and topics that it does not know yet, or not any more.

use karman_remoting::proto::karman::RouteChange;
use karman_remoting::proto::karman::route_change::Change;
use karman_remoting::proto::v2::{self, Code};
use karman_remoting::token::{TokenKey, TransactionId};

use crate::door::{Node, cluster, code, from, queue, resource};
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
