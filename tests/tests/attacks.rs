//! What somebody tries who can reach the port of a node and knows HTTP/2 and gRPC better than is good: it is refused or closed,
//! the node's memory stays within a bound, and who sends beside it is not harmed. `SECURITY.md` names each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_tests::attack::{
    Attacker, ELSEWHERE, END_HEADERS, END_STREAM, SEND, call, field, frame, grpc, kind, remembered,
    while_others_work,
};
use karman_tests::cluster::Node;
use karman_tests::{Cluster, until};

const TOPIC: &str = "orders";
const CLOSED: Duration = Duration::from_secs(10);

fn cluster() -> Cluster {
    let cluster = Cluster::builder().brokers(1).start();
    cluster.create_topic(TOPIC);
    cluster
}

/// `count` attackers at once, each on a thread of its own.
fn at_once<T: Send>(node: &Node, count: usize, attack: impl Fn(&mut Attacker) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let one = |_| scope.spawn(|| attack(&mut Attacker::from(ELSEWHERE, &node.endpoint()).greeting()));
        let all: Vec<_> = (0..count).map(one).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// All were told ENHANCE_YOUR_CALM: RFC 9113, 7.
fn assert_calmed(goodbyes: &[Option<(u32, String)>]) {
    assert!(
        goodbyes.iter().all(|goodbye| goodbye.as_ref().is_some_and(|(code, _)| *code == 11)),
        "{goodbyes:?}"
    );
}

/// Stream `n` of a client.
fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).unwrap()
}

/// The headers of a call whose body is still to come.
fn begun(n: usize, fields: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream(n), fields)
}

#[test]
fn streams_that_are_opened_and_cancelled_at_once() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let goodbyes = while_others_work(node, TOPIC, 64, || {
        at_once(node, 4, |attacker| {
            for n in 0..200_000 {
                let reset = frame(kind::RST_STREAM, 0, stream(n), &8_u32.to_be_bytes());
                if !attacker.say(&[begun(n, &call(SEND)), reset].concat()) {
                    break;
                }
            }
            attacker.goodbye()
        })
    });
    assert_calmed(&goodbyes);
}

#[test]
fn streams_that_are_opened_and_never_used() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    // 384 MiB are the most that one address may hold; what it is refused beyond takes a little too, until it reads that.
    while_others_work(node, TOPIC, 600, || {
        at_once(node, 6, |attacker| {
            for n in 0..10_000 {
                if !attacker.say(&begun(n, &call(SEND))) {
                    return;
                }
            }
            let _ = attacker.answer(stream(9_999));
        })
    });
}

#[test]
fn headers_as_large_as_may_be_on_as_many_streams_as_may_be() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let large: Vec<u8> = (0..3).flat_map(|n| field(&format!("x-{n}"), &[b'x'; 4000])).collect();
    // 384 MiB are what one address may hold; what waits in the HTTP/2 library to be looked at is not counted yet.
    while_others_work(node, TOPIC, 800, || {
        at_once(node, 3, |attacker| {
            for n in 0..10_000 {
                let fields = [call(SEND), large.clone()].concat();
                let (first, rest) = fields.split_at(10_000);
                let mut all = frame(kind::HEADERS, 0, stream(n), first);
                for part in rest.chunks(16_000) {
                    let is_last = part.as_ptr_range().end == rest.as_ptr_range().end;
                    let flags = if is_last { END_HEADERS } else { 0 };
                    all.extend(frame(kind::CONTINUATION, flags, stream(n), part));
                }
                if !attacker.say(&all) {
                    return;
                }
            }
            let _ = attacker.answer(stream(9_999));
        })
    });
}

#[test]
fn a_header_that_is_said_once_and_meant_a_thousand_times() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let goodbyes = while_others_work(node, TOPIC, 64, || {
        at_once(node, 4, |attacker| {
            let mut fields = [call(SEND), remembered("x-bomb", &[b'x'; 4000])].concat();
            // Number 62: the one above, 4000 bytes for one.
            fields.extend([0x80 | 62].repeat(12_000));
            for n in 0..500 {
                if !attacker.say(&begun(n, &fields)) {
                    break;
                }
            }
            attacker.goodbye()
        })
    });
    assert_calmed(&goodbyes);
}

#[test]
fn headers_that_never_end() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let taken = while_others_work(node, TOPIC, 64, || {
        at_once(node, 4, |attacker| {
            attacker.say(&frame(kind::HEADERS, 0, 1, &call(SEND)));
            let large =
                attacker.flood(&frame(kind::CONTINUATION, 0, 1, &field("x", &[b'x'; 1000])), 100_000, true);
            let mut another = Attacker::http2(&node.endpoint());
            another.say(&frame(kind::HEADERS, 0, 1, &call(SEND)));
            // Nothing in them: no limit of sizes is ever reached.
            large.max(another.flood(&frame(kind::CONTINUATION, 0, 1, b""), 2_000_000, true))
        })
    });
    // The kernel's buffers take some.
    assert!(taken.iter().all(|bytes| *bytes < 16 << 20), "{taken:?} bytes were taken");
}

#[test]
fn floods_of_frames_that_ask_for_an_answer_or_mean_nothing() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let frames = [
        ("PING", frame(kind::PING, 0, 0, &[0; 8])),
        ("SETTINGS", frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("WINDOW_UPDATE", frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", frame(2, 0, 1, &[0, 0, 0, 0, 1])),
        ("an unknown kind", frame(0xfe, 0, 0, &[0; 8])),
    ];
    for (what, bytes) in frames {
        for reads in [true, false] {
            println!("{what}, answers read: {reads}");
            while_others_work(node, TOPIC, 64, || {
                at_once(node, 2, |attacker| attacker.flood(&bytes, 400_000, reads));
            });
        }
    }
}

#[test]
fn a_body_of_frames_without_bytes() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let goodbyes = while_others_work(node, TOPIC, 64, || {
        at_once(node, 2, |attacker| {
            attacker.say(&begun(0, &call(SEND)));
            attacker.flood(&frame(kind::DATA, 0, 1, b""), 1_000_000, false);
            attacker.goodbye()
        })
    });
    assert_calmed(&goodbyes);
}

#[test]
fn answers_that_nobody_reads() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let refused = grpc(false, &[0x0a, 0x04, 0x0a, 0x02, 0x12, 0x00]);
    // As many calls as four connections may have, each until its answer is out.
    while_others_work(node, TOPIC, 500, || {
        at_once(node, 4, |attacker| {
            for n in 0..200_000 {
                let whole =
                    [begun(n, &call(SEND)), frame(kind::DATA, END_STREAM, stream(n), &refused)].concat();
                if !attacker.say(&whole) {
                    return n;
                }
            }
            200_000
        })
    });
}

#[test]
fn bodies_that_are_not_what_they_say() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    // Zeros, compressed: 1 MiB of what gzip makes of a GiB would do; that it is compressed must be enough.
    let compressed = [call(SEND), field("grpc-encoding", b"gzip")].concat();
    let huge = [&[0][..], &u32::MAX.to_be_bytes(), b"x"].concat();
    while_others_work(node, TOPIC, 64, || {
        at_once(node, 8, |attacker| {
            for (n, (fields, body)) in
                [(&compressed, grpc(true, &[0; 10_000])), (&call(SEND), huge.clone())].into_iter().enumerate()
            {
                attacker.say(&begun(n, fields));
                attacker.say(&frame(kind::DATA, 0, stream(n), &body));
                let (said, is_open) = attacker.answer(stream(n));
                assert!(is_open && !said.is_empty(), "{n}: refused, and nothing else");
            }
        })
    });
}

/// A message that is small on the wire and large when it is read.
#[test]
fn a_request_of_millions_of_nothings() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let service = "/apache.rocketmq.v2.MessagingService";
    let calls = [
        ("SendMessage", 0x0a_u8, "the limit is 4096"),
        ("AckMessage", 0x1a, "the limit of this call is 1048576"),
        ("SyncLiteSubscription", 0x22, "the limit of this call is 1048576"),
    ];
    for (method, tag, refusal) in calls {
        // A field without a byte in it, over and over.
        let body = grpc(false, &[tag, 0].repeat(15 << 20));
        println!("{method}");
        let answers = while_others_work(node, TOPIC, 256, || {
            at_once(node, 4, |attacker| {
                attacker.say(&begun(0, &call(&format!("{service}/{method}"))));
                attacker.upload(1, &body);
                attacker.answer(1).0
            })
        });
        for said in answers {
            let text = String::from_utf8_lossy(&said);
            assert!(text.contains(refusal), "{method}: {text}");
        }
    }
}

/// So many connections as it says, or as this machine lets one process have.
#[test]
fn ten_thousand_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let files = maximum.map_or(10_000, |files| usize::try_from(files).unwrap() * 9 / 10);
    let count = 10_000.min(files);
    let (max, max_per_address) = (count * 6 / 10, count * 45 / 100);
    let cluster = Cluster::builder()
        .brokers(1)
        .set("maxConnections", &max.to_string())
        .set("maxConnectionsPerAddress", &max_per_address.to_string())
        .start();
    cluster.create_topic(TOPIC);
    let node = &cluster.brokers[0];
    let (address, mut all) = (node.endpoint(), Vec::new());
    while_others_work(node, TOPIC, 400, || {
        for _ in 0..count {
            all.push(Attacker::from(ELSEWHERE, &address).greeting());
        }
        let open = || all.iter().filter(|one| !one.is_closed()).count();
        until("the rest is closed", CLOSED, || (open() <= max_per_address).then_some(()));
        assert_eq!(open(), max_per_address);
        // From another address one gets in.
        assert!(Attacker::http2(&address).hear().is_some(), "the door is open to others");
    });
}

#[test]
fn handshakes_that_stall_by_the_thousand() {
    let cluster = cluster();
    let node = &cluster.brokers[0];
    let address = node.endpoint();
    while_others_work(node, TOPIC, 64, || {
        let mut stalled: Vec<Attacker> = (0..3_000).map(|_| Attacker::connect(&address)).collect();
        for one in &mut stalled {
            one.say(b"P");
        }
        // Who comes now does not wait for them to be given up.
        let came = std::time::Instant::now();
        assert!(Attacker::http2(&address).hear().is_some());
        assert!(came.elapsed() < Duration::from_secs(2), "{:?}", came.elapsed());
    });
}
