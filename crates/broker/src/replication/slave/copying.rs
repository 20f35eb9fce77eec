//! A slave that cannot go on from what it has begins with a copy of its master's store. On the thread `broker-slave`.

use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::copy_response::Part;
use karman_remoting::proto::karman::replication_client::ReplicationClient;
use karman_store::offline::Offline;
use karman_store::{CopiedPiece, CopyTarget, LogId};
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Ended, SILENCE_MAX, Slave, Unusable};
use crate::open::{Opened, store_config};

impl Slave {
    /// Begins with a copy of its master's store.
    pub(super) async fn copy(
        &self,
        opened: &mut Option<Opened>,
        unusable: Option<Unusable>,
        master: &mut ReplicationClient<Channel>,
    ) -> Result<(), Ended> {
        let mut former_end = 0;
        if let Some(former) = opened.take() {
            self.has_opened(None);
            let _ = former.store.close();
            former_end = former.store.watermarks().written;
        }
        let request = self.between.request(v1::CopyRequest { replica: Some(self.replica.clone()) });
        let mut parts = master.copy(request).await?.into_inner();
        let Some(Part::Begin(begin)) = part(&mut parts).await? else {
            return Err(Ended::Nonsense("a copy without a beginning"));
        };
        let why = match unusable {
            Some(Unusable { why, .. }) => Some(format!("its log cannot be used: {why}")),
            // What ends further in front is of an age that the master has deleted.
            None if former_end > begin.log_start => {
                Some("its log has nothing in common with its master's".to_owned())
            }
            None => None,
        };
        if let Some(why) = why {
            tracing::error!(why, "its log is replaced by a copy of its master's, and stays in quarantine");
            Offline::open(&store_config(&self.config).directory)?.set_aside()?;
        } else if former_end > 0 {
            tracing::warn!("its log ends in front of its master's: it is replaced by a copy of that");
        }
        tracing::info!(log_start = begin.log_start, end = begin.end, "copies its master's store");
        let log = LogId(begin.log_id.as_slice().try_into().map_err(|_| Ended::Nonsense("no log id"))?);
        let config = store_config(&self.config);
        let mut target = CopyTarget::begin(&config, log, begin.log_start)?;
        let mut snapshot = Vec::new();
        while let Some(part) = part(&mut parts).await? {
            match part {
                Part::Begin(_) => return Err(Ended::Nonsense("a copy that begins twice")),
                Part::Snapshot(bytes) => snapshot.extend_from_slice(&bytes),
                Part::Log(v1::LogPiece { segment, segment_bytes, at, bytes }) => {
                    let piece = CopiedPiece { segment, segment_bytes, at, bytes };
                    target.piece(&piece)?;
                }
            }
        }
        if let Some(offset) = begin.snapshot_offset {
            target.snapshot(offset, &snapshot)?;
        }
        target.finish(begin.end)?;
        Ok(())
    }
}

async fn part(parts: &mut Streaming<v1::CopyResponse>) -> Result<Option<Part>, Ended> {
    let response = timeout(SILENCE_MAX, parts.message()).await.map_err(|_| Ended::Silent)??;
    response.map(|response| response.part.ok_or(Ended::Nonsense("nothing"))).transpose()
}
