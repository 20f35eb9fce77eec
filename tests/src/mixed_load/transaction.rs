//! Ends of transactions: what the producer says of itself, and its answers to the questions of a broker.

use std::sync::Arc;
use std::time::Duration;

use karman_checker::event::{self, Event, Outcome};
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, TransactionResolution, TransactionSource};
use tokio::time::Instant;

use super::Shared;
use super::broker::{Broker, PAUSE};
use super::plan::{Kind, id_of, now_ms};
use super::record::outcome;
use crate::raw::resource;

/// Without an answer for so long it is left to the broker to ask.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Commits or rolls back until that is answered.
pub(super) async fn end(
    shared: &Shared,
    broker: &Broker,
    id: &str,
    transaction: &str,
    commit: bool,
    asked: bool,
) {
    let resolution = if commit { TransactionResolution::Commit } else { TransactionResolution::Rollback };
    let source = if asked { TransactionSource::SourceServerCheck } else { TransactionSource::SourceClient };
    let give_up = Instant::now() + GIVE_UP;
    while Instant::now() < give_up {
        let b = now_ms();
        let request = v2::EndTransactionRequest {
            topic: resource(Kind::Transaction.topic()),
            message_id: id.to_owned(),
            transaction_id: transaction.to_owned(),
            resolution: resolution.into(),
            source: source.into(),
            ..Default::default()
        };
        let out = outcome(broker.end_transaction(request).await.as_ref());
        let e = now_ms();
        shared.recorder.line(&Event::End(event::End { b, e, m: id.into(), commit, asked, out }));
        if out != Outcome::Unknown {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A producer of one broker that answers its questions, for as long as the runtime lasts.
pub(super) async fn answer(shared: Arc<Shared>, broker: Broker) {
    loop {
        let settings = v2::Settings {
            client_type: Some(v2::ClientType::Producer.into()),
            pub_sub: Some(v2::settings::PubSub::Publishing(v2::Publishing {
                topics: resource(Kind::Transaction.topic()).into_iter().collect(),
                ..Default::default()
            })),
            ..Default::default()
        };
        if let Ok((_open, mut commands)) = broker.telemetry(settings).await {
            while let Ok(Some(command)) = commands.message().await {
                let Some(Command::RecoverOrphanedTransactionCommand(question)) = command.command else {
                    continue;
                };
                let Some(message) = question.message else { continue };
                let (shared, broker) = (shared.clone(), broker.clone());
                // As many at once as the broker asks about.
                tokio::spawn(async move {
                    let id = id_of(&message);
                    let commit = shared.plan.decision(id).commit;
                    end(&shared, &broker, id, &question.transaction_id, commit, true).await;
                });
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
