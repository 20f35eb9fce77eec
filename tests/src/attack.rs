//! An HTTP/2 client that means harm: it writes frames byte by byte, as no library would, and watches what becomes of the node.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use karman_remoting::proto::v2::Code;

use crate::Raw;
use crate::cluster::Node;
use crate::raw::message;

/// What every HTTP/2 client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The kinds of frames that are used here. RFC 9113, 6.
pub mod kind {
    #![allow(missing_docs, reason = "their names are the RFC's")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}
/// Of HEADERS, DATA: nothing follows on the stream.
pub const END_STREAM: u8 = 1;
/// Of HEADERS, CONTINUATION: the headers are whole.
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// Bytes that may be sent unasked, of a stream and of a connection, until the node says something else.
const WINDOW: usize = 65_535;

/// The path of a call of clients.
pub const SEND: &str = "/apache.rocketmq.v2.MessagingService/SendMessage";

/// Where attacks come from: who means well has another address.
pub const ELSEWHERE: &str = "127.0.0.2";

const PATIENCE: Duration = Duration::from_secs(10);
/// A node that takes nothing for so long does not want any more.
const STALLED: Duration = Duration::from_secs(2);
/// What a client that means well waits for an answer beside an attack, at most. It is a debug build, on a machine that is shared.
const SEND_MAX: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// A frame. `payload` has less than 16 MiB.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header field, in plain text and not to be remembered. RFC 7541, 6.2.2.
pub fn field(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0_u8][..], &text(name.as_bytes()), &text(value)].concat()
}

/// One to be remembered: with the number 62 until the next one is.
pub fn remembered(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x40_u8][..], &text(name.as_bytes()), &text(value)].concat()
}

fn text(of: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let mut rest = of.len();
    if rest < 0x7f {
        said.push(u8::try_from(rest).unwrap());
    } else {
        said.push(0x7f);
        rest -= 0x7f;
        while rest >= 0x80 {
            said.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
            rest >>= 7;
        }
        said.push(u8::try_from(rest).unwrap());
    }
    said.extend(of);
    said
}

/// The header fields of a call that is in order.
pub fn call(path: &str) -> Vec<u8> {
    [
        field(":method", b"POST"),
        field(":scheme", b"http"),
        field(":path", path.as_bytes()),
        field(":authority", b"attacker"),
        field("content-type", b"application/grpc"),
        field("te", b"trailers"),
        field("x-mq-client-id", b"attacker@test"),
    ]
    .concat()
}

/// A message as gRPC sends it: how long it is, then the message.
pub fn grpc(compressed: bool, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[u8::from(compressed)][..], &length, message].concat()
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// What they mean depends on the kind.
    pub flags: u8,
    /// 0: of the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// One connection of somebody who means harm. Nothing here panics because the node closes it.
#[derive(Debug)]
pub struct Attacker {
    stream: TcpStream,
}

impl Attacker {
    /// Connects and says nothing.
    pub fn connect(address: &str) -> Attacker {
        Attacker::over(TcpStream::connect(address).unwrap())
    }

    /// The same from another of this machine's addresses.
    pub fn from(source: &str, address: &str) -> Attacker {
        let (source, address): (IpAddr, SocketAddr) = (source.parse().unwrap(), address.parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(source, 0)).unwrap();
            socket.connect(address).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        Attacker::over(stream)
    }

    fn over(stream: TcpStream) -> Attacker {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(STALLED)).unwrap();
        Attacker { stream }
    }

    /// Connects and speaks HTTP/2.
    pub fn http2(address: &str) -> Attacker {
        Attacker::connect(address).greeting()
    }

    /// It says what every HTTP/2 client says first.
    pub fn greeting(self) -> Attacker {
        let mut attacker = self;
        attacker.say(&[PREFACE, &frame(kind::SETTINGS, 0, 0, b"")].concat());
        attacker
    }

    /// Sends; `false` when the node has closed the connection, or takes nothing any more.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends the same again and again, `times` times or until the node takes no more; how many bytes it took. What the node says
    /// meanwhile is read and thrown away if `reads`.
    pub fn flood(&mut self, bytes: &[u8], times: usize, reads: bool) -> usize {
        let mut reading = self.stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            if reads {
                scope.spawn(move || {
                    let mut thrown_away = vec![0; 1 << 16];
                    while reading.read(&mut thrown_away).is_ok_and(|bytes| bytes > 0) {}
                });
            }
            // Many in one write, or the attacker is slower than the node.
            let once = (1 << 16) / bytes.len() + 1;
            let block = bytes.repeat(once);
            let mut taken = 0;
            for _ in 0..times.div_ceil(once) {
                if !self.say(&block) {
                    break;
                }
                taken += block.len();
            }
            if reads {
                // The reader ends with the connection.
                let _ = self.stream.shutdown(std::net::Shutdown::Both);
            }
            taken
        })
    }

    /// Why the node ended the connection: the code of its GOAWAY, and its words. `None`: it closed it without a word, or has not.
    pub fn goodbye(&mut self) -> Option<(u32, String)> {
        while let Some(frame) = self.hear() {
            if frame.kind == kind::GOAWAY && frame.payload[4..8] != [0; 4] {
                let code = u32::from_be_bytes(frame.payload[4..8].try_into().unwrap());
                return Some((code, String::from_utf8_lossy(&frame.payload[8..]).into_owned()));
            }
        }
        None
    }

    /// Sends a body as flow control allows; `false` when the node has ended the stream, or the connection.
    pub fn upload(&mut self, stream: u32, body: &[u8]) -> bool {
        let (mut of_connection, mut of_stream) = (WINDOW, WINDOW);
        let mut rest = body;
        while !rest.is_empty() {
            let now = rest.len().min(16_000).min(of_connection.min(of_stream));
            let (part, later) = rest.split_at(now);
            if now > 0 {
                let flags = if later.is_empty() { END_STREAM } else { 0 };
                if !self.say(&frame(kind::DATA, flags, stream, part)) {
                    return false;
                }
                (of_connection, of_stream, rest) = (of_connection - now, of_stream - now, later);
                continue;
            }
            let Some(frame) = self.hear() else { return false };
            match frame.kind {
                kind::GOAWAY | kind::RST_STREAM => return false,
                kind::HEADERS if frame.stream == stream => return false,
                kind::WINDOW_UPDATE => {
                    let more = u32::from_be_bytes(frame.payload[..4].try_into().unwrap()) as usize;
                    let window = if frame.stream == 0 { &mut of_connection } else { &mut of_stream };
                    *window += more;
                }
                kind::SETTINGS if frame.flags & ACK == 0 => {
                    for setting in frame.payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]) {
                        of_stream += u32::from_be_bytes(setting[2..].try_into().unwrap()) as usize - WINDOW;
                    }
                    self.say(&self::frame(kind::SETTINGS, ACK, 0, b""));
                }
                _ => {}
            }
        }
        true
    }

    /// Whether the node has closed it. Whatever else came is left there.
    pub fn is_closed(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let seen = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        match seen {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// The next frame; `None` when the node has closed the connection, or says nothing for ten seconds.
    pub fn hear(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Whether nothing more comes: it was closed, or what came last says that the connection ends. What came is read.
    pub fn is_over(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let mut thrown_away = [0; 1 << 12];
        let over = loop {
            match (&self.stream).read(&mut thrown_away) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        over
    }

    /// [`Attacker::answer`], if it comes within this time.
    pub fn answer_within(&mut self, stream: u32, patience: Duration) -> Option<Vec<u8>> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        let (said, is_open) = self.answer(stream);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        is_open.then_some(said)
    }

    /// Answers pings and settings until a frame comes that ends `stream` or the connection: its headers as they are, which may have
    /// the result of the call, and whether the connection is still there.
    pub fn answer(&mut self, stream: u32) -> (Vec<u8>, bool) {
        let mut said = Vec::new();
        while let Some(frame) = self.hear() {
            match frame.kind {
                kind::GOAWAY => return (frame.payload, false),
                kind::PING if frame.flags & ACK == 0 => {
                    self.say(&self::frame(kind::PING, ACK, 0, &frame.payload));
                }
                kind::SETTINGS if frame.flags & ACK == 0 => {
                    self.say(&self::frame(kind::SETTINGS, ACK, 0, b""));
                }
                kind::RST_STREAM if frame.stream == stream => return (said, true),
                _ if frame.stream == stream => {
                    said.extend(frame.payload);
                    if frame.flags & END_STREAM != 0 && matches!(frame.kind, kind::DATA | kind::HEADERS) {
                        return (said, true);
                    }
                }
                _ => {}
            }
        }
        (said, false)
    }
}

/// Makes an attack while somebody who means well goes on sending to `topic`: every send must be answered OK in time, and the node
/// must never hold more than `bound_mib` MiB beyond what it held before.
pub fn while_others_work<T>(node: &Node, topic: &str, bound_mib: u64, attack: impl FnOnce() -> T) -> T {
    let raw = Raw::connect(&node.endpoint()).named("meaning-well");
    // It has connected, and the node has everything it needs for a send.
    for n in 0..20 {
        assert_eq!(raw.send(&[message(topic, &format!("before-{n}"))]).status.unwrap().code(), Code::Ok);
    }
    let before = node.resident_bytes();
    let over = AtomicBool::new(false);
    let (result, (sends, slowest), highest) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (mut sends, mut slowest) = (0_u64, Duration::ZERO);
            while !over.load(Ordering::Relaxed) || sends == 0 {
                let began = Instant::now();
                let status = raw.send(&[message(topic, &format!("during-{sends}"))]).status.unwrap();
                assert_eq!(status.code(), Code::Ok, "{status:?}");
                slowest = slowest.max(began.elapsed());
                sends += 1;
            }
            (sends, slowest)
        });
        let watching = scope.spawn(|| {
            let mut highest = 0;
            while !over.load(Ordering::Relaxed) {
                highest = highest.max(node.resident_bytes());
                std::thread::sleep(Duration::from_millis(5));
            }
            highest
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        over.store(true, Ordering::Relaxed);
        let sent = sending.join();
        let highest = watching.join().unwrap();
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), highest)
    });
    let grown = highest.max(node.resident_bytes()).saturating_sub(before) / MIB;
    println!("{sends} sends beside it, the slowest {slowest:?}; the node grew by {grown} MiB of {bound_mib}");
    assert!(slowest < SEND_MAX, "a send beside the attack took {slowest:?}");
    assert!(grown <= bound_mib, "the node grew by {grown} MiB, the bound is {bound_mib}");
    result
}
