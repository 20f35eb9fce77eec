//! The customers: they place orders, and most of them pay.

use std::sync::Arc;
use std::time::Duration;

use karman_client::{MessageView, Resolution, TransactionProducer};

use crate::{Order, Shop};

/// Orders, each from a transaction.
pub(crate) const ORDERS: &str = "shop-orders";
/// What was paid.
pub(crate) const PAYMENTS: &str = "shop-payments";

const ITEMS: [&str; 3] = ["book", "chair", "lamp"];
const ORDERS_COUNT: u32 = 30;
/// How soon the server asks what became of an order that it has heard no decision about.
const CHECK_AFTER: Duration = Duration::from_secs(1);

/// What goes wrong with an order, and when.
#[derive(Clone, Copy)]
enum Mishap {
    None,
    /// The card is refused.
    Refused,
    /// The web server crashes when the order is in the database, and
    CrashedLate,
    /// before it is.
    CrashedEarly,
}

impl Mishap {
    fn of(number: u32) -> Self {
        match number % 10 {
            3 => Self::Refused,
            5 => Self::CrashedLate,
            7 => Self::CrashedEarly,
            _ => Self::None,
        }
    }
}

/// Places all orders. Two of three customers pay. The producer is who the server asks about the transactions that were
/// left without a decision; it is to be kept.
pub(crate) async fn shopping(shop: &Arc<Shop>) -> anyhow::Result<TransactionProducer> {
    let asked = shop.clone();
    let check = move |message: MessageView| {
        let order = message.keys().first().cloned().unwrap_or_default();
        let is_placed = asked.database.find_or_refuse(&order);
        let resolution = if is_placed { Resolution::Commit } else { Resolution::Rollback };
        println!("checker: {order} was left without a decision: {resolution:?}");
        async move { resolution }
    };
    let producer = shop.client.transaction_producer([ORDERS], check);
    for number in 0..ORDERS_COUNT {
        let order = Order {
            id: shop.database.id(number),
            item: ITEMS[number as usize % ITEMS.len()].to_owned(),
            quantity: 1 + number % 4,
        };
        place(shop, &producer, &order, Mishap::of(number)).await?;
    }
    for (number, order) in shop.database.open_orders().into_iter().enumerate() {
        if number % 3 != 0 {
            producer.producer().send(order.message(PAYMENTS)).await?;
        }
    }
    Ok(producer)
}

async fn place(
    shop: &Shop,
    producer: &TransactionProducer,
    order: &Order,
    mishap: Mishap,
) -> anyhow::Result<()> {
    let decide = |_| async {
        match mishap {
            Mishap::Refused => Resolution::Rollback,
            Mishap::CrashedEarly => Resolution::Unknown,
            Mishap::CrashedLate => {
                shop.database.place(order);
                Resolution::Unknown
            }
            Mishap::None if shop.database.place(order) => Resolution::Commit,
            Mishap::None => Resolution::Rollback,
        }
    };
    let message = order.message(ORDERS).check_after(CHECK_AFTER);
    let transaction = producer.transaction(message, decide).await?;
    println!("customer: {} of {} {}, {:?}", order.id, order.quantity, order.item, transaction.resolution);
    Ok(())
}
