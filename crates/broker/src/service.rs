//! The calls of clients and operators, as this broker executes them: one file for each family.

pub mod ack;
pub mod admin;
pub mod ask;
pub mod backup;
pub mod check;
pub mod dead_letter;
pub mod delay;
pub mod delivery;
pub mod explain;
mod fate;
pub mod group_state;
pub mod hold;
pub mod lite;
pub mod lite_receive;
pub mod messaging;
pub mod pull;
pub mod query;
pub mod receive;
pub mod redrive;
pub mod reset;
pub mod send;
pub mod transaction;
pub mod verify;

#[cfg(test)]
mod tests;
