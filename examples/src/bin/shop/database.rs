//! The shop's database: what is true of each order and of the stock, whatever messages say. Each method is one database
//! transaction.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::ensure;

use crate::Order;

/// Of each item, at the beginning.
const STOCK: u32 = 1000;

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Placed,
    Paid,
    Cancelled,
}

#[derive(Debug)]
struct Row {
    order: Order,
    state: State,
    /// Takes the delayed cancellation back.
    recall_handle: Option<String>,
}

#[derive(Debug, Default)]
struct Tables {
    orders: BTreeMap<String, Row>,
    /// Of each item that was sold.
    stock: HashMap<String, u32>,
    /// How often the stock was reduced for an order.
    reductions: HashMap<String, u32>,
    /// Orders of which it was said that they are not there.
    refused: HashSet<String>,
    /// Orders that were seen though they were never placed.
    ghosts: Vec<String>,
}

/// See the module's comment.
#[derive(Debug)]
pub(crate) struct Database {
    run: String,
    tables: Mutex<Tables>,
}

impl Database {
    /// The one of a run, whose orders have ids that begin with it.
    pub(crate) fn open(run: String) -> Self {
        Self { run, tables: Mutex::default() }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // A handler that panicked has left the tables as they were.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of order number `number`.
    pub(crate) fn id(&self, number: u32) -> String {
        format!("{}-{number}", self.run)
    }

    /// Whether the order belongs to this run.
    pub(crate) fn is_ours(&self, order: &Order) -> bool {
        order.id.starts_with(&self.run)
    }

    /// `false`: somebody was told that the order is not there, and so it must stay.
    pub(crate) fn place(&self, order: &Order) -> bool {
        let mut tables = self.tables();
        if tables.refused.contains(&order.id) {
            return false;
        }
        let row = Row { order: order.clone(), state: State::Placed, recall_handle: None };
        tables.orders.insert(order.id.clone(), row);
        true
    }

    /// Whether the order was placed. If it was not, it cannot be any more: its placing may be under way, but slow.
    pub(crate) fn find_or_refuse(&self, id: &str) -> bool {
        let mut tables = self.tables();
        let is_there = tables.orders.contains_key(id);
        if !is_there {
            tables.refused.insert(id.to_owned());
        }
        is_there
    }

    /// `None`: it was never placed.
    pub(crate) fn state(&self, id: &str) -> Option<State> {
        self.tables().orders.get(id).map(|row| row.state)
    }

    /// Somebody has seen an order that is not there.
    pub(crate) fn ghost(&self, id: &str) {
        self.tables().ghosts.push(id.to_owned());
    }

    pub(crate) fn keep_recall_handle(&self, id: &str, handle: Option<String>) {
        if let Some(row) = self.tables().orders.get_mut(id) {
            row.recall_handle = handle;
        }
    }

    pub(crate) fn recall_handle(&self, id: &str) -> Option<String> {
        self.tables().orders.get(id)?.recall_handle.clone()
    }

    /// From placed to `state`; what it is now. Who comes second finds what the first one made.
    pub(crate) fn decide(&self, id: &str, state: State) -> Option<State> {
        let mut tables = self.tables();
        let row = tables.orders.get_mut(id)?;
        if row.state == State::Placed {
            row.state = state;
        }
        Some(row.state)
    }

    /// Takes the order's items out of the stock, once. `false`: that was done before.
    pub(crate) fn reduce_stock(&self, order: &Order) -> bool {
        let mut tables = self.tables();
        if tables.reductions.contains_key(&order.id) {
            return false;
        }
        *tables.reductions.entry(order.id.clone()).or_default() += 1;
        let left = tables.stock.entry(order.item.clone()).or_insert(STOCK);
        *left = left.saturating_sub(order.quantity);
        true
    }

    /// Those that are neither cancelled, nor paid with their stock reduced.
    pub(crate) fn open_orders(&self) -> Vec<Order> {
        let tables = self.tables();
        let is_open = |row: &&Row| match row.state {
            State::Placed => true,
            State::Paid => !tables.reductions.contains_key(&row.order.id),
            State::Cancelled => false,
        };
        tables.orders.values().filter(is_open).map(|row| row.order.clone()).collect()
    }

    /// Whether the shop has kept its promise.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let tables = self.tables();
        ensure!(tables.ghosts.is_empty(), "orders were seen that were never placed: {:?}", tables.ghosts);
        let mut sold: HashMap<&str, u32> = HashMap::new();
        let (mut paid, mut cancelled) = (0, 0);
        for (id, row) in &tables.orders {
            let reductions = tables.reductions.get(id).copied().unwrap_or_default();
            let (state, item) = (row.state, row.order.item.as_str());
            let expected = u32::from(state == State::Paid);
            ensure!(state != State::Placed, "order {id} is neither paid nor cancelled");
            ensure!(
                reductions == expected,
                "order {id} is {state:?}, its stock was reduced {reductions} times"
            );
            *sold.entry(item).or_default() += row.order.quantity * expected;
            paid += expected;
            cancelled += 1 - expected;
        }
        for (item, quantity) in sold {
            let left = tables.stock.get(item).copied().unwrap_or(STOCK);
            ensure!(
                left + quantity == STOCK,
                "{quantity} of {item} were sold, and {left} of {STOCK} are left"
            );
        }
        println!("{paid} orders are paid, {cancelled} are cancelled");
        Ok(())
    }
}
