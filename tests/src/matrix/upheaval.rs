//! Servers go and come while clients of all languages send and receive over open streams: namesrvs, brokers, and one broker
//! more for a while.

use std::collections::HashSet;

use super::{Access, BROKER_RESTART, BROKERS_CHANGE, Column, Failure, NAMESRV_RESTART, judged};
use crate::raw::now_ms;
use crate::stage::{DEADLINE, brokers_with, create_topic, ids, set};
use crate::{Cluster, Driver, Event, Language, Ledger, until};

/// Slow enough for consumers on two cores to keep up.
const PACE: [(&str, &str); 2] = [("threads", "2"), ("pause", "50")];
/// Sent between one event and the next, by each.
const SOME: usize = 60;

/// Producers of these never learn a second route of a topic; they must be started anew.
const KEEP_THE_FIRST_ROUTE: [Language; 2] = [Language::Node, Language::Rust];

/// Consumers of these do not get over a broker that is gone for good, or not always.
const CANNOT_LOSE_A_BROKER: [Language; 2] = [Language::Go, Language::Rust];

/// A producer and a consumer of one language, with a topic and a group of their own.
struct Member {
    column: Column,
    name: String,
    producer: Option<Driver>,
    consumer: Driver,
    /// Of those that were stopped.
    events: Vec<Event>,
}

impl Member {
    /// Not ready yet.
    fn start(column: Column, cluster: &Cluster) -> Member {
        let name = format!("upheaval-{}", column.name());
        create_topic(cluster, &name, "normal");
        let (producer, consumer) = (Some(producer(column, &name, cluster)), consumer(column, &name, cluster));
        Member { column, name, producer, consumer, events: Vec::new() }
    }

    fn producer(&mut self) -> &mut Driver {
        self.producer.as_mut().expect("it sends")
    }

    /// The producer has sent some more, and the consumer has got some more.
    fn advance(&mut self) {
        let count = self.consumer.count("message");
        self.send_on();
        self.consumer.wait_count("message", count + SOME / 2, DEADLINE);
    }

    fn send_on(&mut self) {
        let sent = self.producer().count("sent");
        self.producer().wait_count("sent", sent + SOME, DEADLINE);
    }

    /// The same while no node answers at the access point.
    fn advance_alone(&mut self) {
        match self.column {
            // It may stop to consume until somebody tells it its assignments again.
            Column { language: Language::Go, access: Access::Namesrv } => self.send_on(),
            _ => self.advance(),
        }
    }

    /// Stops sending, and waits until all is delivered.
    fn come_to_rest(&mut self) {
        self.events.extend(self.producer.take().expect("it sends").stop());
        let sent = set(ids(&self.events, "sent"));
        let before = set(ids(&self.events, "message"));
        until("all that was acknowledged is delivered", DEADLINE, || {
            let seen: HashSet<String> = set(ids(&self.consumer.events(), "message"));
            sent.iter().all(|id| seen.contains(id) || before.contains(id)).then_some(())
        });
    }

    fn failed(&self) -> usize {
        self.producer.as_ref().map_or(0, |producer| producer.count("failed"))
    }
}

fn producer(column: Column, name: &str, cluster: &Cluster) -> Driver {
    let stage = column.stage(cluster);
    let options = [&PACE[..], &[("seed", name)]].concat();
    Driver::start(&stage.plan("produce", name, &options), cluster.path())
}

fn consumer(column: Column, name: &str, cluster: &Cluster) -> Driver {
    let scenario = if column.language == Language::Rust { "consume-simple" } else { "consume-push" };
    let options = [("group", name), ("threads", "8")];
    Driver::start(&column.stage(cluster).plan(scenario, name, &options), cluster.path())
}

/// The members that are still well, and what was wrong with the others.
struct Members {
    well: Vec<Member>,
    failures: Vec<Failure>,
}

impl Members {
    /// Who fails in this is out, and shows neither these rows nor what would come after them.
    fn each(&mut self, rows: &[&'static str], act: impl Fn(&mut Member)) {
        self.well.retain_mut(|member| {
            let failure = judged(rows.to_vec(), member.column, || act(member));
            let is_well = failure.is_none();
            self.failures.extend(failure);
            is_well
        });
    }
}

pub(super) fn play(columns: &[Column], cluster: &mut Cluster) -> Vec<Failure> {
    let well = columns.iter().map(|&column| Member::start(column, cluster)).collect();
    let mut members = Members { well, failures: Vec::new() };
    let all = [NAMESRV_RESTART, BROKER_RESTART, BROKERS_CHANGE];
    members.each(&all, |member| {
        member.producer().wait_ready();
        member.consumer.wait_ready();
        member.advance();
    });
    namesrvs_restart(&mut members, cluster);
    let crashes = brokers_restart(&mut members, cluster);
    a_broker_comes(&mut members, cluster);
    // What is lost is seen when all has come to rest.
    members.each(&all[1..], |member| {
        member.come_to_rest();
        let mut ledger = Ledger::default();
        ledger.add(member.events.clone());
        ledger.add(member.consumer.events());
        ledger.assert_nothing_lost();
        ledger.assert_none_twice_but_in_flight(&crashes);
    });
    a_broker_goes(&mut members, cluster);
    members.failures
}

/// With the routes they have, and those they get from namesrvs that know nothing yet, no client misses a send.
fn namesrvs_restart(members: &mut Members, cluster: &mut Cluster) {
    for number in 0..cluster.namesrvs.len() {
        cluster.namesrvs[number].kill();
        members.each(&[NAMESRV_RESTART], Member::advance_alone);
        cluster.namesrvs[number].start();
        cluster.wait_whole();
        members.each(&[NAMESRV_RESTART], Member::advance);
    }
    members.each(&[NAMESRV_RESTART], |member| assert_eq!(member.failed(), 0, "sends that failed"));
}

/// `kill -9` of each, one after the other; when.
fn brokers_restart(members: &mut Members, cluster: &mut Cluster) -> Vec<u64> {
    let mut crashes = Vec::new();
    for number in 0..cluster.brokers.len() {
        cluster.brokers[number].kill();
        crashes.push(u64::try_from(now_ms()).unwrap());
        cluster.brokers[number].start();
        cluster.wait_whole();
        members.each(&[BROKER_RESTART], Member::advance);
    }
    crashes
}

/// One more broker gets queues of every topic, and everybody finds it.
fn a_broker_comes(members: &mut Members, cluster: &mut Cluster) {
    cluster.add_broker();
    for member in &members.well {
        cluster.karman(&["topic", "create", &member.name, "--if-not-exists"]);
        cluster.wait_route(&member.name);
    }
    let count = cluster.brokers.len();
    let cluster: &Cluster = cluster;
    let finds = |member: &mut Member| {
        until("it sends to the new broker, too", DEADLINE, || {
            (brokers_with(cluster, &member.name) == count).then_some(())
        });
        member.advance();
    };
    members.each(&[BROKERS_CHANGE], |member| {
        if !KEEP_THE_FIRST_ROUTE.contains(&member.column.language) {
            finds(member);
        }
    });
    // The others have found the new broker meanwhile.
    members.each(&[BROKERS_CHANGE], |member| {
        if KEEP_THE_FIRST_ROUTE.contains(&member.column.language) {
            assert!(
                brokers_with(cluster, &member.name) < count,
                "the defect is gone: it found the new broker"
            );
            start_anew(member, cluster);
            finds(member);
        }
    });
}

fn start_anew(member: &mut Member, cluster: &Cluster) {
    let (column, name) = (member.column, member.name.clone());
    let old = [
        member.producer.replace(producer(column, &name, cluster)).expect("it sends"),
        std::mem::replace(&mut member.consumer, consumer(column, &name, cluster)),
    ];
    for driver in old {
        member.events.extend(driver.stop());
    }
    member.producer().wait_ready();
    member.consumer.wait_ready();
}

/// Nobody sends while the new broker has messages left, and then it goes; the consumers have open streams to it.
fn a_broker_goes(members: &mut Members, cluster: &mut Cluster) {
    cluster.brokers.pop().expect("it came").stop();
    for member in &members.well {
        cluster.wait_route(&member.name);
    }
    let cluster: &Cluster = cluster;
    members.each(&[BROKERS_CHANGE], |member| {
        member.producer = Some(producer(member.column, &member.name, cluster));
        if CANNOT_LOSE_A_BROKER.contains(&member.column.language) {
            start_anew(member, cluster);
        }
        member.producer().wait_ready();
        member.advance();
        assert_eq!(member.failed(), 0, "sends that failed");
        member.come_to_rest();
    });
}
