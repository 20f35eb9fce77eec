//! What a slave does with what lies between it and its log writer, and with what it cannot take.

use std::net::SocketAddr;
use std::path::Path;

use karman_remoting::proto::karman::replication_server::{Replication, ReplicationServer};
use karman_store::{NewRecord, QueueNumber, RecordKind};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::*;

const FRAME_BYTES: usize = 200_000;

fn config(directory: &Path) -> BrokerConfig {
    BrokerConfig {
        store_path_root_dir: directory.to_str().unwrap().to_owned(),
        mapped_file_size_commit_log: 64 << 20,
        broker_id: 1,
        ..BrokerConfig::default()
    }
}

fn slave(config: &BrokerConfig) -> Slave {
    Slave {
        between: Between::default(),
        config: config.clone(),
        replica: v1::Replica { broker_id: 1, ..Default::default() },
        routes: SharedRoutes::default(),
        attending: None,
        status: Arc::default(),
        store: OpenStore::default(),
        opened: Arc::default(),
        failed: watch::Sender::new(None),
        stopping: CancellationToken::new(),
    }
}

/// A master's store with some megabytes, and all of it as frames.
async fn master(directory: &Path) -> (Opened, Vec<RawRecords>) {
    let master = open(&config(directory), false, None).unwrap();
    let store = &master.store;
    store.lead(1, Durability::Disk).unwrap().await.unwrap();
    for number in 0..40 {
        let record = NewRecord {
            kind: RecordKind::Message,
            queue: Some(QueueNumber(7)),
            tag_hash: 0,
            mark: 0,
            keys: Vec::new(),
            payload: vec![number; 100_000].into(),
        };
        store.append(vec![record], Durability::Memory).unwrap().await.unwrap();
    }
    let (mut frames, mut at) = (Vec::new(), 0);
    while at < store.watermarks().written {
        let raw = store.raw(at, FRAME_BYTES).unwrap();
        at = raw.end;
        frames.push(raw);
    }
    (master, frames)
}

/// A replica, and what was sent to it waits for its log writer.
fn busy(config: &BrokerConfig, master: &Opened, frames: &[RawRecords]) -> Opened {
    let replica = open(config, true, Some(master.store.log_id())).unwrap();
    for frame in frames {
        // Each is flushed: more wait than are written. Who waits for an answer is gone.
        drop(replica.store.append_raw(frame.clone(), 0, Durability::Disk).unwrap());
    }
    replica
}

#[tokio::test]
async fn a_hello_tells_of_what_a_former_master_has_sent() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (master, frames) = master(here.path()).await;
    let config = config(there.path());
    let replica = busy(&config, &master, &frames);
    let hello = slave(&config).hello(Some(&replica), None).await.unwrap();
    assert_eq!(hello.end, master.store.watermarks().written);
}

#[tokio::test]
async fn a_cut_takes_back_what_a_former_master_has_sent() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (master, frames) = master(here.path()).await;
    let config = config(there.path());
    let mut replica = Some(busy(&config, &master, &frames));
    let to = frames[0].end;
    slave(&config).cut(&mut replica, to).unwrap();
    let again = open(&config, true, None).unwrap();
    assert_eq!((again.store.watermarks().written, again.store.damage()), (to, Vec::new()));
}

/// Leaves a gap, and tells what the slave says of it.
struct Gap {
    log: LogId,
    second: RawRecords,
    heard: mpsc::Sender<String>,
}

#[tonic::async_trait]
impl Replication for Gap {
    async fn follow(
        &self,
        request: Request<Streaming<v1::FollowRequest>>,
    ) -> Result<Response<BoxStream<v1::FollowResponse>>, Status> {
        let mut asked = request.into_inner();
        let welcome = v1::Welcome {
            log_id: self.log.0.to_vec(),
            segment_bytes: 64 << 20,
            flush: false,
            first: Some(First::Nothing(true)),
        };
        let RawRecords { start, bytes: records, segment_bytes, .. } = self.second.clone();
        let frame = v1::Frame { start, records, segment_bytes, confirmed: 0, end: start };
        let (says, said) = mpsc::channel(4);
        for response in [Said::Welcome(welcome), Said::Frame(frame)] {
            says.try_send(Ok(v1::FollowResponse { response: Some(response) })).unwrap();
        }
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = asked.message().await {
                if let Some(Ask::GivesUp(why)) = request.request {
                    let _ = heard.send(why).await;
                    break;
                }
            }
            drop(says);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

async fn serve(gap: Gap) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(ReplicationServer::new(gap));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

#[tokio::test]
async fn a_master_hears_why_a_slave_cannot_take_what_it_is_sent() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (master, frames) = master(here.path()).await;
    let (says, mut heard) = mpsc::channel(4);
    let address = serve(Gap { log: master.store.log_id(), second: frames[1].clone(), heard: says }).await;
    let config = BrokerConfig { ha_master_address: address.to_string(), ..config(there.path()) };
    let slave = slave(&config);
    let stopping = slave.stopping.clone();
    let run = tokio::spawn(slave.run(None));
    let why = timeout(Duration::from_secs(30), heard.recv()).await.unwrap().unwrap();
    assert!(why.contains("it ends at 0"), "{why}");
    stopping.cancel();
    run.await.unwrap();
}
