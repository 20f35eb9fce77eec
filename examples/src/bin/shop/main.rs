//! A shop, in which every step is a message and every handler may fail, crash, or see a message again.
//!
//! ```text
//!  customer ── transaction ──▶ shop-orders ──▶ desk ── delayed ──▶ shop-timeouts ──▶ canceller
//!     │   order is in the database, or it is not              ▲        not paid: cancelled
//!     └── pays ──▶ shop-payments ──▶ cashier ──── recall ─────┘
//!                                       └── FIFO by item ──▶ shop-stock ──▶ stock keeper
//!                                                            operator ◀── dead letters, redriven
//! ```
//!
//! At the end every order is paid and its stock reduced once, or cancelled and the stock untouched; the program checks
//! that and exits with 1 when it is not so.
#![forbid(unsafe_code)]

mod customers;
mod database;
mod staff;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use karman_client::{Client, ClientOptions, Message, MessageView};
use karman_examples::Operator;
use karman_remoting::proto::v2::MessageType;

use self::database::Database;

/// From the first order to the last that is settled.
const DEADLINE: Duration = Duration::from_secs(90);
/// How often the operator looks after the dead letters.
const ROUND: Duration = Duration::from_millis(500);
/// For the handlers that still run at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// An order as messages carry it.
#[derive(Clone, Debug)]
struct Order {
    id: String,
    item: String,
    quantity: u32,
}

impl Order {
    /// A message about the order.
    fn message(&self, topic: &str) -> Message {
        Message::new(topic, self.id.clone())
            .key(&self.id)
            .property("item", &self.item)
            .property("quantity", self.quantity.to_string())
    }

    /// `None`: it is not a message about an order.
    fn of(message: &MessageView) -> Option<Self> {
        Some(Self {
            id: message.keys().first()?.clone(),
            item: message.property("item")?.to_owned(),
            quantity: message.property("quantity")?.parse().ok()?,
        })
    }
}

/// What all parts of the shop share. In a real one these are processes of their own, and the database is a database.
#[derive(Debug)]
struct Shop {
    client: Client,
    database: Database,
    /// Nobody can take lamps out of the warehouse while it is not.
    lamps_are_accessible: AtomicBool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let endpoint = karman_examples::endpoint_argument()?;
    let client = Client::connect(&endpoint, ClientOptions::default()).await?;
    let operator = Operator::new(&endpoint)?;
    for (topic, kind) in [
        (customers::ORDERS, MessageType::Transaction),
        (staff::TIMEOUTS, MessageType::Delay),
        (customers::PAYMENTS, MessageType::Normal),
        (staff::STOCK, MessageType::Fifo),
    ] {
        operator.topic(&client, topic, kind).await?;
    }
    // Two deliveries and a message is a dead letter; everybody else has the default of 17.
    operator.group(staff::STOCK_KEEPER, 1, Duration::from_millis(200)).await?;

    // Messages that an earlier run has left are of no interest to this one.
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let shop = Arc::new(Shop {
        client: client.clone(),
        database: Database::open(format!("{run:x}")),
        lamps_are_accessible: AtomicBool::new(false),
    });
    let staff = staff::start(&shop)?;
    let result = async {
        let _asked = customers::shopping(&shop).await?;
        settle(&shop, &operator).await
    }
    .await;
    for person in staff {
        ensure!(person.shutdown(PATIENCE).await, "a handler did not come to its end");
    }
    client.close().await;
    result?;
    shop.database.check()?;
    println!("every order is paid and its stock reduced once, or cancelled and its stock untouched");
    Ok(())
}

/// Waits until every order is settled. The operator makes lamps accessible when nothing else is left to be done, and
/// sends what has died meanwhile back to the stock keeper.
async fn settle(shop: &Shop, operator: &Operator) -> anyhow::Result<()> {
    let settled = async {
        while !shop.database.open_orders().is_empty() {
            tokio::time::sleep(ROUND).await;
            let letters = operator.redrive(staff::STOCK_KEEPER, true).await?;
            if letters == 0 || shop.database.open_orders().iter().any(|order| order.item != "lamp") {
                continue;
            }
            shop.lamps_are_accessible.store(true, Ordering::Relaxed);
            let count = operator.redrive(staff::STOCK_KEEPER, false).await?;
            println!(
                "operator: lamps are accessible again, {count} dead letters go back to the stock keeper"
            );
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, settled)
        .await
        .with_context(|| format!("not settled within {DEADLINE:?}: {:?}", shop.database.open_orders()))?
}
