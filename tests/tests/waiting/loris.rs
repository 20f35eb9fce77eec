//! Who says a byte now and then, so as to hold a place for ever: is closed, or told that it took too long.

use std::time::{Duration, Instant};

use karman_remoting::proto::v2::Code;
use karman_tests::Cluster;
use karman_tests::attack::{
    Attacker, ELSEWHERE, END_HEADERS, PREFACE, SEND, call, frame, grpc, kind, while_others_work,
};

/// Of each kind.
const COUNT: usize = 100;
/// A ping after 30 s, 20 s for its answer; and what a shared machine may take.
const HALF_A_FRAME: Duration = Duration::from_secs(70);
/// 60 s for a body.
const BODY: Duration = Duration::from_secs(80);

/// One byte a second of `bytes`, until the node has closed all; how long that took.
fn drip(all: &mut [Attacker], bytes: &[u8], deadline: Duration) -> Duration {
    let began = Instant::now();
    for byte in bytes.iter().cycle() {
        if all.iter().all(Attacker::is_over) {
            break;
        }
        assert!(began.elapsed() < deadline, "not closed within {deadline:?}");
        for one in &mut *all {
            one.say(&[*byte]);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    began.elapsed()
}

#[test]
fn slow_clients_are_not_waited_for_and_hold_nothing() {
    let cluster = Cluster::builder().brokers(1).start();
    cluster.create_topic("orders");
    let node = &cluster.brokers[0];
    let address = node.endpoint();
    let some = |greet: bool| -> Vec<Attacker> {
        let one = |_| {
            let attacker = Attacker::from(ELSEWHERE, &address);
            if greet { attacker.greeting() } else { attacker }
        };
        (0..COUNT).map(one).collect()
    };
    while_others_work(node, "orders", 64, || {
        std::thread::scope(|scope| {
            // Of the preface: 10 s for the whole handshake.
            scope.spawn(|| drip(&mut some(false), PREFACE, Duration::from_secs(20)));
            // Of a frame of headers, which never ends.
            scope.spawn(|| {
                let mut all = some(true);
                let headers = frame(kind::HEADERS, END_HEADERS, 1, &call(SEND).repeat(60));
                drip(&mut all, &headers, HALF_A_FRAME);
            });
            // Of a body. It answers what is asked of it meanwhile, as a good client does.
            scope.spawn(|| {
                let mut attacker = some(true).pop().unwrap();
                attacker.say(&frame(kind::HEADERS, END_HEADERS, 1, &call(SEND)));
                let began = Instant::now();
                let body = grpc(false, &[0; 1000]);
                let mut said = None;
                for byte in body {
                    attacker.say(&frame(kind::DATA, 0, 1, &[byte]));
                    said = attacker.answer_within(1, Duration::from_secs(1));
                    if said.is_some() {
                        break;
                    }
                    assert!(began.elapsed() < BODY, "the body was waited for");
                }
                assert!(began.elapsed() > Duration::from_secs(55), "{:?}", began.elapsed());
                let said = said.unwrap();
                let text = String::from_utf8_lossy(&said).into_owned();
                assert!(text.contains("did not arrive whole within 60 s"), "{text}");
                let code = [&[0x08_u8][..], &varint(Code::RequestTimeout as u64)].concat();
                assert!(said.windows(code.len()).any(|window| window == code), "{text}");
            });
        });
    });
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}
