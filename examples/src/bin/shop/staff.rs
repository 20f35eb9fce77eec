//! Those who work in the shop, each a consumer. Every one of them bears to see a message again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use karman_client::{ClientError, Code, FilterExpression, MessageView, Producer, PushConsumer, PushOptions};

use crate::customers::{ORDERS, PAYMENTS};
use crate::database::State;
use crate::{Order, Shop};

/// Orders that are to be cancelled if they are not paid by then.
pub(crate) const TIMEOUTS: &str = "shop-timeouts";
/// What is to be taken out of the stock: by item, one after the other.
pub(crate) const STOCK: &str = "shop-stock";
/// The group of the stock keeper.
pub(crate) const STOCK_KEEPER: &str = "shop-stock-keeper";

/// How long a customer may take to pay. In a real shop half an hour.
const PAY_WITHIN: Duration = Duration::from_secs(3);

/// Everybody begins to work.
pub(crate) fn start(shop: &Arc<Shop>) -> Result<[PushConsumer; 4], ClientError> {
    let producer = shop.client.producer();
    let sender = producer.clone();
    Ok([
        hire(shop, "shop-desk", ORDERS, move |shop, _, order| desk(shop, producer.clone(), order))?,
        hire(shop, "shop-cashier", PAYMENTS, move |shop, _, order| cashier(shop, sender.clone(), order))?,
        hire(shop, "shop-canceller", TIMEOUTS, |shop, _, order| canceller(shop, order))?,
        hire(shop, STOCK_KEEPER, STOCK, stock_keeper)?,
    ])
}

/// A consumer of the orders of this run; the second argument of `work` is the number of the delivery.
fn hire<W, F>(shop: &Arc<Shop>, group: &str, topic: &str, work: W) -> Result<PushConsumer, ClientError>
where
    W: Fn(Arc<Shop>, i32, Order) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let place = shop.clone();
    let handle = move |message: MessageView| {
        let (shop, work) = (place.clone(), work.clone());
        async move {
            match Order::of(&message) {
                Some(order) if shop.database.is_ours(&order) => {
                    work(shop, message.delivery_attempt(), order).await
                }
                _ => Ok(()),
            }
        }
    };
    shop.client.push_consumer(group, [(topic, FilterExpression::all())], &PushOptions::default(), handle)
}

/// Sets the clock for an order that is not paid yet.
async fn desk(shop: Arc<Shop>, producer: Producer, order: Order) -> anyhow::Result<()> {
    match shop.database.state(&order.id) {
        None => shop.database.ghost(&order.id),
        Some(State::Placed) if shop.database.recall_handle(&order.id).is_none() => {
            let receipt = producer.send(order.message(TIMEOUTS).deliver_after(PAY_WITHIN)).await?;
            shop.database.keep_recall_handle(&order.id, receipt.recall_handle);
        }
        Some(_) => {}
    }
    Ok(())
}

/// Takes the money, stops the clock, and tells the stock keeper. All of it may happen again.
async fn cashier(shop: Arc<Shop>, producer: Producer, order: Order) -> anyhow::Result<()> {
    if shop.database.decide(&order.id, State::Paid) != Some(State::Paid) {
        println!("cashier: {} was cancelled before it was paid, the money goes back", order.id);
        return Ok(());
    }
    if let Some(handle) = shop.database.recall_handle(&order.id) {
        match producer.recall(TIMEOUTS, &handle).await {
            Ok(_) => println!("cashier: {} is paid, its cancellation is recalled", order.id),
            // The canceller will find the order paid.
            Err(error) if error.code() == Some(Code::MessageNotFound) => {
                println!("cashier: {} is paid, its cancellation was under way", order.id);
            }
            Err(error) => return Err(error.into()),
        }
    }
    producer.send(order.message(STOCK).message_group(&order.item)).await?;
    Ok(())
}

/// The time to pay is over.
async fn canceller(shop: Arc<Shop>, order: Order) -> anyhow::Result<()> {
    if shop.database.decide(&order.id, State::Cancelled) == Some(State::Cancelled) {
        println!("canceller: {} was not paid in time and is cancelled", order.id);
    }
    Ok(())
}

/// Takes the items out of the stock: those of one kind in the order in which they were paid.
async fn stock_keeper(shop: Arc<Shop>, attempt: i32, order: Order) -> anyhow::Result<()> {
    if order.item == "lamp" && !shop.lamps_are_accessible.load(Ordering::Relaxed) {
        println!("stock keeper: {} cannot be done, attempt {attempt}", order.id);
        bail!("lamps are not accessible");
    }
    if !shop.database.reduce_stock(&order) {
        println!("stock keeper: {} was done before, attempt {attempt}", order.id);
        return Ok(());
    }
    println!("stock keeper: {} takes {} {}", order.id, order.quantity, order.item);
    if order.item == "book" && attempt == 1 {
        bail!("the power failed between the work and its acknowledgement");
    }
    Ok(())
}
