//! Namesrvs with controllers in this process, each with its own port and directory.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use karman_namesrv::{Namesrv, NamesrvConfig, StartError, start};
use karman_remoting::channel::ChannelPool;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::proto::karman::{DescribeControllerRequest, DescribeControllerResponse, SetState};
use karman_remoting::server::TlsMode;
use tempfile::TempDir;
use tonic::transport::Channel;

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A port that nobody has. Another may take it before it is used, with bad luck.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

pub(crate) struct Cluster {
    pub(crate) addresses: BTreeMap<u64, String>,
    /// Who forms the group.
    peers: String,
    pub(crate) running: BTreeMap<u64, Namesrv>,
    root: TempDir,
}

impl Cluster {
    /// `count` controllers, none of which runs; the first `forming` of them form the group.
    pub(crate) fn new(count: u64, forming: usize) -> Self {
        let addresses: BTreeMap<u64, String> = (1..=count).map(|id| (id, free_address())).collect();
        let peers = addresses.iter().take(forming).map(|(id, address)| format!("{id}-{address}"));
        let peers = peers.collect::<Vec<_>>().join(";");
        Self { addresses, peers, running: BTreeMap::new(), root: tempfile::tempdir().unwrap() }
    }

    /// Three that run.
    pub(crate) fn of_three() -> Self {
        let mut cluster = Self::new(3, 3);
        [1, 2, 3].iter().for_each(|id| cluster.start(*id));
        cluster
    }

    pub(crate) fn directory(&self, id: u64) -> PathBuf {
        self.root.path().join(id.to_string())
    }

    pub(crate) fn config(&self, id: u64) -> NamesrvConfig {
        let own = self.addresses[&id].clone();
        let all = self.addresses.iter().map(|(id, address)| format!("{id}-{address}"));
        let is_forming = self.peers.contains(&own);
        let peers = if is_forming { self.peers.clone() } else { all.collect::<Vec<_>>().join(";") };
        NamesrvConfig {
            grpc_listen_address: own,
            metrics_listen_address: "127.0.0.1:0".into(),
            tls_server_mode: TlsMode::Disabled,
            enable_controller_in_namesrv: true,
            controller_peers: peers,
            controller_self_id: id,
            controller_store_path: self.directory(id).to_str().unwrap().to_owned(),
            cluster_secret: "secret".into(),
            ..NamesrvConfig::default()
        }
    }

    pub(crate) fn start(&mut self, id: u64) {
        self.try_start(id).unwrap();
    }

    pub(crate) fn try_start(&mut self, id: u64) -> Result<(), StartError> {
        self.running.insert(id, start(&self.config(id))?);
        Ok(())
    }

    pub(crate) async fn stop(&mut self, id: u64) {
        self.running.remove(&id).unwrap().shutdown().await;
    }

    pub(crate) fn client(&self, id: u64) -> ControllerClient<Channel> {
        ControllerClient::new(ChannelPool::new().get(&self.addresses[&id]).unwrap())
    }

    pub(crate) async fn describe(&self, id: u64) -> Option<DescribeControllerResponse> {
        let request = with_secret(DescribeControllerRequest {});
        let mut client = self.client(id);
        let answer = tokio::time::timeout(Duration::from_secs(2), client.describe_controller(request));
        Some(answer.await.ok()?.ok()?.into_inner())
    }

    /// What the leader says of the set, asked through any controller that runs.
    pub(crate) async fn set(&self) -> Option<SetState> {
        let answer = self.describe(*self.running.keys().next()?).await?;
        let is_ok = answer.status.is_some_and(|status| status.code == 20_000);
        answer.sets.into_iter().find(|_| is_ok)
    }

    pub(crate) async fn leader(&self) -> Option<u64> {
        let answer = self.describe(*self.running.keys().next()?).await?;
        let is_ok = answer.status.is_some_and(|status| status.code == 20_000);
        let known = self.addresses.iter().find(|(_, address)| **address == answer.leader);
        known.map(|(id, _)| *id).filter(|_| is_ok)
    }

    /// Waits until the controllers have a leader.
    pub(crate) async fn led(&self) -> u64 {
        let found = async || self.leader().await.filter(|id| self.running.contains_key(id));
        eventually("a leader", found).await
    }

    pub(crate) fn http(&self, id: u64, path: &str) -> String {
        http(self.running[&id].metrics_address().unwrap(), path)
    }
}

pub(crate) fn with_secret<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    karman_remoting::metadata::add_secret(request.metadata_mut(), &"secret".into());
    request
}

fn http(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Asks again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
