//! `karman store verify`.

use anyhow::Context as _;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2::Code;
use karman_store::offline::Offline;
use karman_store::{Damage, Finding, IndexState, Report, SegmentReport, Severity};
use serde::Serialize;
use tonic::Request;

use crate::cli::Damaged;
use crate::node::{Node, code_of, message_of};
use crate::output::{self, Format, bytes, grouped, number, text};
use crate::progress::ProgressBar;
use crate::time;

#[derive(Serialize)]
struct ReportJson<'a> {
    sound: bool,
    segments: Vec<SegmentJson<'a>>,
    damage: Vec<DamageJson<'a>>,
    findings: Vec<FindingJson<'a>>,
}

#[derive(Serialize)]
struct SegmentJson<'a> {
    base: u64,
    length_bytes: u64,
    records: u64,
    given_up_bytes: u64,
    first_store_ms: Option<u64>,
    last_store_ms: Option<u64>,
    index: &'static str,
    index_reason: Option<&'a str>,
    damaged_bytes: u64,
}

#[derive(Serialize)]
struct DamageJson<'a> {
    from: u64,
    to: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    severity: &'static str,
    what: &'a str,
    remedy: &'a str,
}

fn index_word(index: &IndexState) -> (&'static str, Option<&str>) {
    match index {
        IndexState::None => ("none", None),
        IndexState::Sound => ("sound", None),
        IndexState::Damaged(reason) => ("damaged", Some(reason)),
    }
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Problem => "problem",
        Severity::StopsStart => "stops-start",
    }
}

fn damaged_bytes<'a>(damage: impl IntoIterator<Item = &'a Damage>) -> u64 {
    damage.into_iter().map(|damage| damage.to - damage.from).sum()
}

/// Verifies the files of a stopped broker.
pub(super) fn stopped(offline: &Offline, format: Format) -> anyhow::Result<()> {
    let report = {
        let mut bar = ProgressBar::new(output::bytes);
        offline.verify(&mut |progress| bar.show(progress.verified_bytes, progress.total_bytes))?
    };
    if !output::nameless(format, &ReportJson::of(&report))? {
        print(&report)?;
    }
    match report.is_sound() {
        true => Ok(()),
        false => {
            let bytes = damaged_bytes(report.damage());
            let what =
                format!("{bytes} bytes of the log are damaged; `karman store repair` shows what can be done");
            Err(Damaged(what).into())
        }
    }
}

impl<'a> ReportJson<'a> {
    fn of(report: &'a Report) -> Self {
        let segment = |segment: &'a SegmentReport| SegmentJson {
            base: segment.base,
            length_bytes: segment.length_bytes,
            records: segment.records,
            given_up_bytes: segment.given_up_bytes,
            first_store_ms: segment.store_times_ms.map(|(first, _)| first),
            last_store_ms: segment.store_times_ms.map(|(_, last)| last),
            index: index_word(&segment.index).0,
            index_reason: index_word(&segment.index).1,
            damaged_bytes: damaged_bytes(&segment.damage),
        };
        let damage =
            |damage: &'a Damage| DamageJson { from: damage.from, to: damage.to, reason: &damage.reason };
        let finding = |finding: &'a Finding| FindingJson {
            severity: severity_word(finding.severity),
            what: &finding.what,
            remedy: &finding.remedy,
        };
        Self {
            sound: report.is_sound(),
            segments: report.segments.iter().map(segment).collect(),
            damage: report.damage().map(damage).collect(),
            findings: report.findings.iter().map(finding).collect(),
        }
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    let cells = |segment: &SegmentReport| {
        let stored = segment.store_times_ms.map_or("-".to_owned(), |(first, _)| time::format_ms(first));
        vec![
            segment.base.to_string(),
            bytes(segment.length_bytes),
            grouped(segment.records),
            stored,
            index_word(&segment.index).0.to_owned(),
            grouped(damaged_bytes(&segment.damage)),
        ]
    };
    let columns = [
        number("SEGMENT"),
        number("SIZE"),
        number("RECORDS"),
        text("STORED FROM"),
        text("INDEX"),
        number("DAMAGED"),
    ];
    output::table(&columns, report.segments.iter().map(cells).collect())?;
    print_damage(report.damage().map(|damage| (damage.from, damage.to, damage.reason.as_str())).collect())?;
    for segment in &report.segments {
        if let IndexState::Damaged(reason) = &segment.index {
            output::line(&format!("problem: index file of segment {}: {reason}", segment.base))?;
        }
    }
    for finding in &report.findings {
        output::line(&format!("{}: {finding}", severity_word(finding.severity)))?;
    }
    Ok(())
}

fn print_damage(damage: Vec<(u64, u64, &str)>) -> anyhow::Result<()> {
    if damage.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let cells = |(from, to, reason): (u64, u64, &str)| {
        vec![from.to_string(), to.to_string(), grouped(to - from), reason.to_owned()]
    };
    let columns = [number("DAMAGE FROM"), number("TO"), number("BYTES"), text("REASON")];
    Ok(output::table(&columns, damage.into_iter().map(cells).collect())?)
}

/// What one running broker said.
#[derive(Serialize)]
struct LiveJson {
    broker: String,
    sound: bool,
    error: Option<String>,
    verified_bytes: u64,
    segments: u32,
    records: u64,
    given_up_bytes: u64,
    damaged_bytes: u64,
    damage: Vec<LiveDamageJson>,
    indexes: Vec<LiveIndexJson>,
    repaired: Vec<RepairedJson>,
}

#[derive(Serialize)]
struct LiveDamageJson {
    from: u64,
    to: u64,
    reason: String,
}

#[derive(Serialize)]
struct RepairedJson {
    from: u64,
    to: u64,
    source: String,
    repaired_ms: u64,
}

#[derive(Serialize)]
struct LiveIndexJson {
    segment: u64,
    reason: String,
}

impl From<v1::VerifyStoreResponse> for LiveJson {
    fn from(answer: v1::VerifyStoreResponse) -> Self {
        let is_ok = code_of(answer.status.as_ref()) == Code::Ok;
        let error = (!is_ok).then(|| message_of(answer.status.as_ref()).to_owned());
        let error = error.or_else(|| answer.report.is_none().then(|| "it ended without a report".to_owned()));
        let report = answer.report.unwrap_or_default();
        Self {
            broker: answer.broker_name,
            sound: error.is_none() && report.damaged_bytes == 0 && report.indexes.is_empty(),
            error,
            verified_bytes: answer.verified_bytes,
            segments: report.segments,
            records: report.records,
            given_up_bytes: report.given_up_bytes,
            damaged_bytes: report.damaged_bytes,
            damage: report
                .damage
                .into_iter()
                .map(|damage| LiveDamageJson { from: damage.from, to: damage.to, reason: damage.reason })
                .collect(),
            indexes: report
                .indexes
                .into_iter()
                .map(|index| LiveIndexJson { segment: index.segment, reason: index.reason })
                .collect(),
            repaired: report
                .repaired
                .into_iter()
                .map(|v1::RepairedStretch { from, to, source, repaired_ms }| RepairedJson {
                    from,
                    to,
                    source,
                    repaired_ms,
                })
                .collect(),
        }
    }
}

/// Has running brokers verify what they have stored.
pub(super) async fn live(
    node: &Node,
    broker: Option<String>,
    rate_mb: Option<u64>,
    format: Format,
) -> anyhow::Result<()> {
    let request = v1::VerifyStoreRequest {
        broker_name: broker.unwrap_or_default(),
        bytes_per_second: rate_mb.unwrap_or(0) * 1_000_000,
    };
    let mut request: Request<_> = node.request(request);
    // It takes as long as it takes.
    request.metadata_mut().remove("grpc-timeout");
    let stream = node.admin()?.verify_store(request).await;
    let mut stream = stream.map_err(|status| node.failure(&status))?.into_inner();
    // The last answer of each broker, in the order in which they began.
    let mut last: Vec<v1::VerifyStoreResponse> = Vec::new();
    {
        let mut bar = ProgressBar::new(output::bytes);
        while let Some(answer) = stream.message().await.context("the node ended the answer")? {
            match last.iter_mut().find(|known| known.broker_name == answer.broker_name) {
                Some(known) => *known = answer,
                None => last.push(answer),
            }
            let sum = |of: fn(&v1::VerifyStoreResponse) -> u64| last.iter().map(of).sum();
            bar.show(sum(|answer| answer.verified_bytes), sum(|answer| answer.total_bytes));
        }
    }
    last.sort_by(|a, b| a.broker_name.cmp(&b.broker_name));
    if let [only] = &last[..]
        && only.broker_name.is_empty()
    {
        node.check(only.status.as_ref(), &[])?;
    }
    let rows: Vec<LiveJson> = last.into_iter().map(LiveJson::from).collect();
    if !output::nameless(format, &rows)? {
        print_live(&rows)?;
    }
    let failed: Vec<_> = rows.iter().filter_map(|row| row.error.as_ref().map(|e| (&row.broker, e))).collect();
    if let Some((broker, error)) = failed.first() {
        anyhow::bail!("broker {broker} was not verified: {error}");
    }
    match rows.iter().all(|row| row.sound) {
        true => Ok(()),
        false => Err(Damaged("a broker's store is damaged; see above".to_owned()).into()),
    }
}

fn print_live(rows: &[LiveJson]) -> anyhow::Result<()> {
    let cells = |row: &LiveJson| {
        vec![
            row.broker.clone(),
            bytes(row.verified_bytes),
            row.segments.to_string(),
            grouped(row.records),
            grouped(row.damaged_bytes),
            row.indexes.len().to_string(),
        ]
    };
    let columns = [
        text("BROKER"),
        number("VERIFIED"),
        number("SEGMENTS"),
        number("RECORDS"),
        number("DAMAGED BYTES"),
        number("INDEXES REBUILT"),
    ];
    output::table(&columns, rows.iter().map(cells).collect())?;
    for row in rows {
        print_damage(
            row.damage.iter().map(|damage| (damage.from, damage.to, damage.reason.as_str())).collect(),
        )?;
        for RepairedJson { from, to, source, .. } in &row.repaired {
            output::line(&format!("{from}..{to} was damaged and is repaired from {source}"))?;
        }
    }
    Ok(())
}
