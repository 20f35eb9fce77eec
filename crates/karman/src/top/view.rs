//! What a sample looks like, in 80 columns. Pure.

use super::SortWord;
use super::sample::{BrokerRates, GroupRates, Rates, TopicRates};
use crate::output::{self, bytes, grouped, number, text};
use crate::time;

/// A screen: columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

fn rate(rate: f64) -> String {
    if rate == 0.0 || rate >= 10.0 { grouped(rate.round() as u64) } else { format!("{rate:.1}") }
}

fn brokers(rates: &Rates) -> String {
    let row = |broker: &BrokerRates| {
        let disk = broker.disk_used_percent.map_or("-".to_owned(), |percent| format!("{percent} %"));
        let own = vec![
            broker.broker.clone(),
            broker.role.to_ascii_lowercase().replace('_', " "),
            rate(broker.in_per_second),
            rate(broker.out_per_second),
            format!("{:.0} %", broker.cpu_percent),
            disk,
            bytes(broker.log_bytes),
            String::new(),
        ];
        let slaves = broker.slaves.iter().map(|slave| {
            let state = if slave.in_sync { "in sync" } else { "behind" };
            let mut cells = vec![format!("  slave {}", slave.broker_id), state.to_owned()];
            cells.resize(7, String::new());
            cells.push(bytes(slave.lag_bytes));
            cells
        });
        std::iter::once(own).chain(slaves).collect::<Vec<_>>()
    };
    let columns = [
        text("BROKER"),
        text("ROLE"),
        number("IN/S"),
        number("OUT/S"),
        number("CPU"),
        number("DISK"),
        number("LOG"),
        number("LAG"),
    ];
    output::format_table(&columns, rates.brokers.iter().flat_map(row).collect())
}

fn topics(rates: &Rates) -> String {
    let row = |topic: &TopicRates| {
        let (into, out) = (rate(topic.in_per_second), rate(topic.out_per_second));
        vec![topic.topic.clone(), into, out, grouped(topic.messages)]
    };
    let columns = [text("TOPIC"), number("IN/S"), number("OUT/S"), number("MESSAGES")];
    output::format_table(&columns, rates.topics.iter().map(row).collect())
}

fn groups(rates: &Rates) -> String {
    let row = |group: &GroupRates| {
        let topic = if group.topic.is_empty() { "-" } else { &group.topic };
        let state = if group.suspended { "suspended" } else { "" };
        vec![
            group.group.clone(),
            topic.to_owned(),
            rate(group.in_per_second),
            rate(group.out_per_second),
            grouped(group.ready),
            grouped(group.inflight),
            state.to_owned(),
        ]
    };
    let columns = [
        text("GROUP"),
        text("TOPIC"),
        number("IN/S"),
        number("OUT/S"),
        number("READY"),
        number("IN FLIGHT"),
        text(""),
    ];
    output::format_table(&columns, rates.groups.iter().map(row).collect())
}

/// For a file or a script's reader: everything there is.
pub(super) fn tables(rates: &Rates) -> Vec<String> {
    let mut all = vec![brokers(rates), String::new(), topics(rates), String::new(), groups(rates)];
    all.extend(rates.errors.iter().map(|error| output::wrapped(0, error)));
    all
}

/// For a screen: as much of topics and groups as there is room for, and how much there is not.
pub(super) fn page(rates: &Rates, sort: SortWord, size: Size) -> Vec<String> {
    let width = usize::from(size.columns);
    let mut lines = vec![format!(
        "karman top  {}  {}  by {}  (q: end, s: sort)",
        rates.cluster,
        time::format_ms(rates.at_ms),
        sort.word()
    )];
    lines.extend(brokers(rates).lines().map(str::to_owned));
    let errors = rates
        .errors
        .iter()
        .flat_map(|error| output::wrapped(0, error).lines().map(str::to_owned).collect::<Vec<_>>());
    let errors: Vec<String> = errors.take(2).collect();
    let left = usize::from(size.rows).saturating_sub(lines.len() + errors.len());
    let (topics, groups) = (topics(rates), groups(rates));
    // Half for each; what one does not need the other has. A blank line stands in front of each.
    let (topic_rows, group_rows) = (topics.lines().count() + 1, groups.lines().count() + 1);
    let for_topics = topic_rows.min((left / 2).max(left.saturating_sub(group_rows)));
    for (table, room) in [(&topics, for_topics), (&groups, left.saturating_sub(for_topics))] {
        lines.extend(shortened(table, room));
    }
    lines.extend(errors);
    lines.truncate(usize::from(size.rows));
    lines.into_iter().map(|line| line.chars().take(width).collect()).collect()
}

/// A table behind a blank line in so many lines; the last one says how many rows are missing.
fn shortened(table: &str, room: usize) -> Vec<String> {
    let rows: Vec<&str> = table.lines().collect();
    // The title alone says nothing.
    if room < 3 {
        return Vec::new();
    }
    let mut lines = vec![String::new()];
    if rows.len() < room {
        lines.extend(rows.iter().map(|row| (*row).to_owned()));
        return lines;
    }
    let shown = room - 2;
    lines.extend(rows[..shown].iter().map(|row| (*row).to_owned()));
    lines.push(format!("... {} more", rows.len() - shown));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(topics: usize, groups: usize) -> Rates {
        let topic = |number: usize| TopicRates {
            topic: format!("topic-{number}"),
            in_per_second: 1234.5,
            out_per_second: 0.4,
            messages: 1_000_000,
        };
        let group = |number: usize| GroupRates {
            group: format!("group-{number}-{}", "x".repeat(60)),
            topic: "orders".into(),
            in_per_second: 0.0,
            out_per_second: 12.0,
            ready: 4711,
            inflight: 3,
            suspended: number == 0,
        };
        let broker = BrokerRates {
            broker: "broker-a".into(),
            role: "SYNC_MASTER".into(),
            in_per_second: 99_999.0,
            out_per_second: 99_999.0,
            cpu_percent: 187.4,
            disk_used_percent: Some(45),
            log_bytes: 3 << 30,
            delayed: 0,
            undecided: 0,
            slaves: vec![super::super::sample::SlaveState { broker_id: 1, in_sync: true, lag_bytes: 2048 }],
        };
        Rates {
            cluster: "test".into(),
            at_ms: 1_700_000_000_000,
            seconds: 1.0,
            brokers: vec![broker],
            topics: (0..topics).map(topic).collect(),
            groups: (0..groups).map(group).collect(),
            errors: vec!["broker broker-b: no answer".into()],
        }
    }

    #[test]
    fn a_page_fits_every_screen_and_says_what_it_leaves_out() {
        for rows in [1, 4, 10, 24, 60] {
            for (topics, groups) in [(0, 0), (3, 2), (100, 1), (1, 100), (100, 100)] {
                let page = page(&rates(topics, groups), SortWord::In, Size { columns: 80, rows });
                let context = format!("{rows} rows, {topics} topics, {groups} groups:\n{}", page.join("\n"));
                assert!(page.len() <= usize::from(rows), "{context}");
                assert!(page.iter().all(|line| line.chars().count() <= 80), "{context}");
                let named = |name: &str| page.iter().filter(|line| line.starts_with(name)).count();
                if rows == 60 && topics + groups < 20 {
                    assert_eq!((named("topic-"), named("group-")), (topics, groups), "{context}");
                }
                if rows >= 24 {
                    assert!(page.iter().any(|line| line.contains("broker-b: no answer")), "{context}");
                    assert!(topics < 100 || page.iter().any(|line| line.ends_with(" more")), "{context}");
                }
            }
        }
    }

    #[test]
    fn one_sample_shows_everything() {
        let text = tables(&rates(100, 1)).join("\n");
        assert!(
            text.contains("topic-99 ") && text.contains("1,235") && text.contains("sync master"),
            "{text}"
        );
        assert!(text.contains("  slave 1 in sync") && text.contains("2.0 KiB"), "{text}");
    }
}
