use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use karman_remoting::proto::DESCRIPTORS;
use karman_remoting::proto::v2::{HeartbeatRequest, QueryRouteRequest, ReceiveMessageRequest};
use karman_remoting::server::ServerOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, u8)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; size as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], head[4]))
}

async fn http2(server: &karman_remoting::server::Server) -> TcpStream {
    connect_and_send(server.local_addr(), &[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()).await
}

#[tokio::test]
async fn headers_that_never_end_are_cut_off() {
    let (server, _) = start(options());
    let stream = http2(&server).await;
    let (mut reading, mut writing) = stream.into_split();
    let flood = tokio::spawn(async move {
        // A literal header of 1000 bytes, over and over; no frame ends the headers.
        let mut literal = vec![0x00, 0x01, b'a', 0x7f, 0xe9, 0x06];
        literal.extend([b'x'; 1000]);
        let mut sent = 0_usize;
        let mut next = frame(HEADERS, 0, 1, &literal);
        while writing.write_all(&next).await.is_ok() {
            sent += next.len();
            next = frame(CONTINUATION, 0, 1, &literal);
        }
        sent
    });
    let mut answer = Vec::new();
    let _ = soon(reading.read_to_end(&mut answer)).await;
    let sent = soon(flood).await.expect("flood");
    // What the server read is less; the rest filled the kernel's buffers.
    assert!(sent < 32 * 1024 * 1024, "{sent} bytes were taken");
    server.shutdown().await;
}

#[tokio::test]
async fn pings_without_calls_are_answered() {
    const PINGS: usize = 2_000;
    let (server, _) = start(options());
    let mut stream = http2(&server).await;
    let mut answered = 0;
    while answered < PINGS {
        stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.expect("ping");
        loop {
            let (kind, flags) = soon(read_frame(&mut stream)).await.expect("no GOAWAY, no close");
            assert!(matches!(kind, SETTINGS | PING | 8), "frame of kind {kind}");
            if (kind, flags) == (PING, ACK) {
                break;
            }
        }
        answered += 1;
    }
    // A client that does not answer GOAWAY holds the shutdown up for the grace.
    drop(stream);
    server.shutdown().await;
}

#[tokio::test]
async fn two_thousand_long_polls_share_a_connection() {
    const POLLS: usize = 2_000;
    let (server, calls) = start(options());
    let client = plaintext(&server);
    let polls = (0..POLLS).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let answer = client.receive_message(ReceiveMessageRequest::default()).await.expect("begins");
            answer.into_inner().message().await.expect("answers").expect("a frame").content
        })
    });
    let polls: Vec<_> = polls.collect();
    calls.until_waiting(POLLS).await;
    // Others are served meanwhile, on the same connection.
    soon(client.clone().query_route(QueryRouteRequest::default())).await.expect("served");
    calls.go_on.add_permits(POLLS);
    for content in soon(join_all(polls)).await {
        assert!(content.expect("no panic").is_some());
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_its_stream_only() {
    let (server, calls) = start(options());
    let client = plaintext(&server);
    let endless = ReceiveMessageRequest { auto_renew: true, ..Default::default() };
    let unread = soon(client.clone().receive_message(endless)).await.expect("begins");
    // The client's connection task goes on reading, up to the stream's window; then the server must stop.
    let frames = || calls.frames.load(Ordering::SeqCst);
    let stalled = async {
        loop {
            let before = frames();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if before > 0 && frames() == before {
                return before;
            }
        }
    };
    let produced = soon(stalled).await * FRAME_BYTES;
    assert!(produced < 8 * 1024 * 1024, "{produced} bytes were produced for a client that reads none");
    soon(client.clone().query_route(QueryRouteRequest::default())).await.expect("others are served");
    drop(unread);
    server.shutdown().await;
}

#[tokio::test]
async fn a_panic_in_a_call_ends_that_call_only() {
    let (server, _) = start(options());
    let client = plaintext(&server);
    soon(client.clone().heartbeat(HeartbeatRequest::default())).await.expect_err("panicked");
    soon(client.clone().query_route(QueryRouteRequest::default())).await.expect("served");
    server.shutdown().await;
}

#[tokio::test]
async fn deadlines_of_decades_are_taken() {
    let (server, _) = start(options());
    // The Java client gives its telemetry 60 years; eight digits and hours are the most that can be said.
    for timeout in ["31536000M", "99999999H", "99999999n"] {
        let mut request = tonic::Request::new(QueryRouteRequest::default());
        request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("a header value"));
        let served = soon(plaintext(&server).query_route(request)).await;
        served.unwrap_or_else(|error| panic!("{timeout}: {error}"));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn every_server_has_health_and_reflection() {
    use prost::Message as _;

    let (server, _) = start(ServerOptions { threads: 2, ..options() });
    // An empty request asks for the health of the whole; the answer is SERVING (1) in field 1.
    let answer = soon(raw_unary(&server, "/grpc.health.v1.Health/Check", b"")).await;
    assert_eq!(answer, [0x08, 0x01]);
    // list_services, field 7.
    let request = [0x3a, 0x01, b'*'];
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let answer = soon(raw_unary(&server, path, &request)).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("apache.rocketmq.v2.MessagingService") && text.contains("karman.v1"), "{text}");
    }
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    assert!(files.file.iter().any(|file| file.package() == "apache.rocketmq.v2"));
    server.shutdown().await;
}

/// A call of a method whose messages this crate does not generate.
async fn raw_unary(server: &karman_remoting::server::Server, path: &'static str, request: &[u8]) -> Vec<u8> {
    use http::uri::PathAndQuery;
    use tonic::IntoRequest as _;

    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.local_addr()));
    let mut grpc = tonic::client::Grpc::new(endpoint.expect("address").connect_lazy());
    grpc.ready().await.expect("ready");
    let request = futures_util::stream::iter([RawMessage(request.to_vec())]).into_request();
    let codec = tonic_prost::ProstCodec::<RawMessage, RawMessage>::default();
    let answer = grpc.streaming(request, PathAndQuery::from_static(path), codec).await.expect(path);
    answer.into_inner().message().await.expect("an answer").expect("a message").0
}

/// A message as its bytes.
#[derive(Debug, Default)]
struct RawMessage(Vec<u8>);

impl prost::Message for RawMessage {
    fn encode_raw(&self, buffer: &mut impl bytes::BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buffer: &mut impl bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::encode_key(tag, wire_type, &mut self.0);
        self.0.extend(buffer.copy_to_bytes(buffer.remaining()));
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
