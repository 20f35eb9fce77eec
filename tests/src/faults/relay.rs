//! A relay in front of the ports of a server, in its namespace: what comes through it comes late, or is taken and never answered.
//! Owned by the thread of the run; it has a thread of its own, since a thread is in one namespace.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc as later, oneshot};
use tokio::time::{Instant, sleep_until};

use super::network::Place;

/// The port beside which a relay listens for another.
const ABOVE: u16 = 20_000;
const PIECE_BYTES: usize = 64 << 10;
/// Pieces under way in one direction of a connection.
const PIECES_MAX: usize = 64;

/// How late, or never. A piece of a stream takes half as much to one and a half times as much, and overtakes none.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answers {
    After(Duration),
    Never,
}

/// Relays until it is dropped; then its connections are reset.
#[derive(Debug)]
pub(super) struct Relay {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Everything new that comes to `ports` of `place` comes through it.
    pub(super) fn before(place: &Place, ports: &'static [u16], answers: Answers, seed: u64) -> Self {
        let namespace = File::open(format!("/run/netns/{}", place.name)).expect("the namespace is there");
        let (stop, stopped) = oneshot::channel();
        let (ready, listens) = mpsc::channel();
        let ip = place.ip.clone();
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async move {
                let mut relays = tokio::task::JoinSet::new();
                for &port in ports {
                    let listener = TcpListener::bind((ip.as_str(), port + ABOVE)).await;
                    let listener = listener.expect("nobody else listens there");
                    relays.spawn(accept(listener, (ip.clone(), port), answers, seed));
                }
                let _ = ready.send(());
                let _ = stopped.await;
            });
        });
        listens.recv().expect("the relay listens");
        ports.iter().for_each(|&port| place.redirect(port, port + ABOVE));
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Its runtime ends with the thread, and all connections with that.
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn accept(listener: TcpListener, server: (String, u16), answers: Answers, mut seed: u64) {
    let mut held = Vec::new();
    let mut relayed = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        match answers {
            Answers::Never => held.push(client),
            Answers::After(latency) => {
                seed = seed.wrapping_add(2);
                relayed.spawn(relay(client, server.clone(), latency, seed));
            }
        }
    }
}

async fn relay(client: TcpStream, server: (String, u16), latency: Duration, seed: u64) {
    let Ok(server) = TcpStream::connect((server.0.as_str(), server.1)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // One direction that ends ends the other.
    tokio::select! {
        () = pass_on(from_client, to_server, latency, seed) => {}
        () = pass_on(from_server, to_client, latency, seed + 1) => {}
    }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, latency: Duration, seed: u64) {
    let (pieces, mut due_pieces) = later::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let read = async move {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut buffer, mut due) = (vec![0; PIECE_BYTES], Instant::now());
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            due = due.max(Instant::now() + latency.mul_f64(random.random_range(0.5..1.5)));
            if pieces.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = due_pieces.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
