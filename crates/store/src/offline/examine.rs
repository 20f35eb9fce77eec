//! Examining a stopped store: everything that a start would read and more, judged as a start would judge it
//! (`recovery/scan.rs`), without changing anything. What it finds is the report of `verify` and the basis of `repair`.

use std::ops::Range;

use super::Offline;
use super::survey::{Files, SegmentFile, Survey};
use crate::damage::Damage;
use crate::directory::LogId;
use crate::error::OpenError;
use crate::report::{Finding, IndexState, Progress, Report};
use crate::segment::PAGE_BYTES;
use crate::verify::{self, Halt, Stretch, Verified, Visited};

const OTHER_VERSION: &str = "use the version of karman that wrote it";

/// A stretch of the log for which there is no file, or none in the right place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Misplaced {
    /// No file has it.
    Missing(Range<u64>),
    /// The log goes on here, in a file that is not there; what was in it is not known.
    End { at: u64, length: u64 },
    /// The file that starts here lies in another one.
    Overlap(u64),
    /// The file that starts here has no bytes.
    Empty(u64),
    /// The file that starts here lies too far behind the end of the log and holds nothing of it.
    Surplus(u64),
    /// The file that starts here does not consist of whole pages.
    Odd(u64),
}

/// All that is known of a stopped store.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) survey: Survey,
    pub(super) report: Report,
    pub(super) misplaced: Vec<Misplaced>,
    /// Where the log ends.
    pub(super) end: u64,
    /// With each stretch of damage the store time of the record in front of it.
    pub(super) damage: Vec<(Damage, u64)>,
    /// Places with records that a newer version wrote.
    pub(super) unsupported: bool,
}

/// A segment as it was read.
struct Walked {
    file: SegmentFile,
    verified: Verified,
    /// Each with the store time of the last record in front of it.
    stretches: Vec<(Stretch, u64)>,
    /// The last record that says that everything in front of it had been flushed.
    last_flushed_before: Option<u64>,
    has_records: bool,
    /// What of it was looked at.
    upto: u64,
}

pub(super) fn examine(offline: &Offline, progress: &mut dyn FnMut(Progress)) -> Result<Examined, OpenError> {
    let survey = Survey::of(offline)?;
    let mut findings = Vec::new();
    let mut misplaced = Vec::new();
    check_identity(&survey, &mut findings);
    check_files(&survey, &mut findings, &mut misplaced);
    check_snapshots(&survey, &mut findings);
    let mut report = Report { segments: Vec::new(), findings };
    let Some(log) = survey.log else {
        return Ok(Examined {
            end: survey.log_start(),
            survey,
            report,
            misplaced,
            damage: Vec::new(),
            unsupported: false,
        });
    };
    let walked = walk_all(&survey, log, progress)?;
    let mut judged = Judge::new(&survey).run(walked);
    check_end(&survey, &judged, &mut misplaced, &mut report.findings);
    report.findings.append(&mut judged.findings);
    let mut damage = Vec::new();
    for (walked, own) in judged.segments {
        let about = walked.file.about(log);
        report.segments.push(walked.verified.report(about, own.iter().map(|(own, _)| own.clone()).collect()));
        damage.extend(own);
    }
    Ok(Examined { end: judged.end, survey, report, misplaced, damage, unsupported: judged.unsupported })
}

fn check_identity(survey: &Survey, findings: &mut Vec<Finding>) {
    let Err(reason) = &survey.identity else { return };
    let remedy = match survey.log {
        _ if survey.is_of_other_version => OTHER_VERSION,
        Some(_) => "`karman store repair DIRECTORY --owner CLUSTER/BROKER` writes it anew",
        None => {
            "put the file `identity` back from a backup: no other file here says which log this is, so no record can be \
             told from damage"
        }
    };
    findings.push(Finding::stops_start(reason.clone(), remedy));
}

/// Files must lie behind one another; a start looks at it the same way.
fn check_files(survey: &Survey, findings: &mut Vec<Finding>, misplaced: &mut Vec<Misplaced>) {
    const REPAIR: &str = "put the file back, or give up what it held: `karman store repair`";
    let mut end = survey.log_start();
    for file in &survey.files {
        let (base, name) = (file.base, file.path.display());
        if file.end() <= end && base < survey.log_start() {
            findings.push(Finding::note(format!("{name} was left by an interrupted deletion")));
            continue;
        }
        if file.length == 0 {
            misplaced.push(Misplaced::Empty(base));
            findings.push(Finding::stops_start(format!("{name} is empty"), REPAIR));
            continue;
        }
        if file.length != file.padded() {
            misplaced.push(Misplaced::Odd(base));
            let what = format!("{name} has {} bytes, which is no length of a segment", file.length);
            findings.push(Finding::stops_start(what, REPAIR));
        }
        if base > end {
            misplaced.push(Misplaced::Missing(end..base));
            let what = format!("the log has no segment for {end}..{base}");
            findings.push(Finding::stops_start(what, REPAIR));
        }
        if base < end {
            misplaced.push(Misplaced::Overlap(base));
            let what = format!("{name} starts in front of {end}, where the segment before it ends");
            findings.push(Finding::stops_start(what, "move the one away that does not belong here"));
        }
        end = end.max(file.end());
    }
}

fn check_snapshots(survey: &Survey, findings: &mut Vec<Finding>) {
    for snapshot in &survey.snapshots {
        if let Err(reason) = &snapshot.content {
            let what = format!("snapshot {}: {reason}", snapshot.path.display());
            findings.push(Finding::problem(what, "the one before it is used; the next ones take its place"));
        }
    }
    let log_start = survey.log_start();
    if log_start > 0 && survey.newest_snapshot().is_none_or(|offset| offset < log_start) {
        findings.push(Finding::stops_start(
            format!("the log begins at {log_start} and no intact snapshot is as new as that"),
            "restore one from a backup, or give up topics, groups and consumer progress that were recorded in front of \
             it: `karman store repair DIRECTORY --forget-state`",
        ));
    }
}

fn walk_all(
    survey: &Survey,
    log: LogId,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Walked>, OpenError> {
    let files: Vec<&SegmentFile> = survey.log_files().filter(|file| file.length > 0).collect();
    let index_bytes =
        |file: &&SegmentFile| std::fs::metadata(file.index_path()).map_or(0, |found| found.len());
    let total_bytes = files.iter().map(|file| file.padded() + index_bytes(file)).sum();
    let mut verified_bytes = 0_u64;
    let mut walked = Vec::with_capacity(files.len());
    for file in files {
        let upto = verified_bytes + file.padded() + index_bytes(&file);
        let mut read = |bytes: u64| {
            verified_bytes = (verified_bytes + bytes).min(upto);
            progress(Progress { verified_bytes, total_bytes });
            true
        };
        walked.push(walk(survey, file, log, &mut read)?);
        // Of a segment that is not full, not everything is read.
        verified_bytes = upto;
        progress(Progress { verified_bytes, total_bytes });
    }
    Ok(walked)
}

fn walk(
    survey: &Survey,
    file: &SegmentFile,
    log: LogId,
    read: &mut dyn FnMut(u64) -> bool,
) -> Result<Walked, OpenError> {
    let mut source = Files::open(file, log, read)?;
    let upto = file.end().min(survey.known.limit.max(file.base));
    let (mut stretches, mut last_flushed_before, mut has_records) = (Vec::new(), None, false);
    let mut time_ms = 0;
    let verified = verify::segment(&mut source, file.about(log), upto, &mut |visited| match visited {
        Visited::Valid(header, _) => {
            has_records = true;
            time_ms = header.store_time_ms.max(time_ms);
            if header.flushed_before {
                last_flushed_before = Some(header.physical_offset);
            }
        }
        Visited::Invalid(stretch) => stretches.push((stretch.clone(), time_ms)),
    });
    let verified = verified.map_err(ended_early(&file.path))?;
    Ok(Walked { file: file.clone(), verified, stretches, last_flushed_before, has_records, upto })
}

/// Nobody ends it early or deletes a segment of a stopped store.
pub(super) fn ended_early(path: &std::path::Path) -> impl FnOnce(Halt) -> OpenError {
    let failed = OpenError::io("read all of", path);
    move |_| failed(std::io::Error::other("it was ended early"))
}

struct Judge {
    durable_below: u64,
    end: Option<u64>,
    findings: Vec<Finding>,
    unsupported: bool,
}

struct Judged {
    segments: Vec<(Walked, Vec<(Damage, u64)>)>,
    end: u64,
    findings: Vec<Finding>,
    /// Files behind the one in which the log ends.
    surplus: Vec<SegmentFile>,
    /// The last file is full and has an index file, so another one followed it.
    goes_on: bool,
    unsupported: bool,
}

impl Judge {
    fn new(survey: &Survey) -> Self {
        let durable_below = survey.newest_snapshot().unwrap_or(0).max(survey.known.flushed);
        Self { durable_below, end: None, findings: Vec::new(), unsupported: false }
    }

    fn run(mut self, walked: Vec<Walked>) -> Judged {
        let holds: Vec<bool> = walked.iter().map(|walked| walked.has_records).collect();
        let last_end = walked.last().map_or(0, |walked| walked.file.end());
        let (mut segments, mut surplus, mut goes_on) = (Vec::new(), Vec::new(), false);
        let mut ended_in = None;
        for (number, walked) in walked.into_iter().enumerate() {
            if self.end.is_some() {
                // One segment is made ahead.
                if ended_in.is_some_and(|ended| number > ended + 1) {
                    surplus.push(walked.file.clone());
                }
                segments.push((walked, Vec::new()));
                continue;
            }
            let is_any_later = holds[number + 1..].iter().any(|holds| *holds);
            let damage = self.judge(&walked, is_any_later);
            if self.end.is_some() {
                ended_in = Some(number);
            }
            goes_on = self.end.is_none() && walked.verified.index == IndexState::Sound;
            segments.push((walked, damage));
        }
        let end = self.end.unwrap_or(last_end);
        Judged { segments, end, findings: self.findings, surplus, goes_on, unsupported: self.unsupported }
    }

    /// What of a segment is damage; sets the end where the log ends in it.
    fn judge(&mut self, walked: &Walked, is_any_later: bool) -> Vec<(Damage, u64)> {
        let segment_end = walked.file.end();
        // A segment is flushed before its index is written.
        let durable_to = match walked.verified.index {
            IndexState::Sound => segment_end,
            _ => self.durable_below.min(segment_end),
        };
        let mut damage: Vec<(Damage, u64)> = Vec::new();
        for (stretch, time_ms) in &walked.stretches {
            if stretch.why.is_unsupported() {
                let (at, why) = (stretch.from, stretch.why);
                let what = format!("{} holds at {at} a record of {why}", walked.file.path.display());
                self.findings.push(Finding::stops_start(what, OTHER_VERSION));
                self.unsupported = true;
                continue;
            }
            let mut from = stretch.from;
            let to = match self.damaged_to(walked, stretch, &mut from, durable_to, is_any_later) {
                Some(to) => to,
                None => {
                    let torn = walked.stretches.len() > 1 || stretch.to < walked.upto;
                    if torn {
                        let what =
                            format!("the log ends at {from} in a torn tail, which the next start cuts");
                        self.findings.push(Finding::note(what));
                    }
                    self.end = Some(from);
                    from
                }
            };
            if to > stretch.from {
                add(&mut damage, Damage { to, ..stretch.damage() }, *time_ms);
            }
            if self.end.is_some() {
                break;
            }
        }
        damage
    }

    /// Where the damage that starts at `from` ends; `None` if the log ends at `from`, which is moved behind what is known
    /// to be lost.
    fn damaged_to(
        &self,
        walked: &Walked,
        stretch: &Stretch,
        from: &mut u64,
        durable_to: u64,
        is_any_later: bool,
    ) -> Option<u64> {
        let first = (stretch.to < walked.upto).then_some(stretch.to);
        let is_flushed =
            |at: u64| at < durable_to || walked.last_flushed_before.is_some_and(|last| last >= at);
        if first.is_some_and(is_flushed) {
            return first;
        }
        *from = (*from).max(durable_to);
        if is_any_later || *from >= walked.file.end() {
            return Some(first.unwrap_or(walked.file.end()));
        }
        None
    }
}

/// Stretches that touch are one.
fn add(list: &mut Vec<(Damage, u64)>, damage: Damage, time_ms: u64) {
    match list.last_mut() {
        Some((last, _)) if last.to >= damage.from => last.to = damage.to,
        _ => list.push((damage, time_ms)),
    }
}

/// What lies behind the last file, or should.
fn check_end(survey: &Survey, judged: &Judged, misplaced: &mut Vec<Misplaced>, findings: &mut Vec<Finding>) {
    const REPAIR: &str = "put the file back, or give up what it held: `karman store repair`";
    for file in &judged.surplus {
        misplaced.push(Misplaced::Surplus(file.base));
        let what =
            format!("{} lies too far behind the end of the log at {}", file.path.display(), judged.end);
        findings.push(Finding::stops_start(what, "`karman store repair` sets it aside: it holds no record"));
    }
    let Some(last) = survey.log_files().last() else { return };
    let durable = survey.newest_snapshot().unwrap_or(0).max(survey.known.flushed);
    if durable > last.end() {
        let to = durable.next_multiple_of(PAGE_BYTES);
        misplaced.push(Misplaced::Missing(last.end()..to));
        let what = format!("the log was durable up to {durable}, but its last file ends at {}", last.end());
        findings.push(Finding::stops_start(what, REPAIR));
    } else if judged.goes_on {
        misplaced.push(Misplaced::End { at: last.end(), length: last.padded() });
        let what = format!("the log goes on behind its last file, at {}", last.end());
        findings.push(Finding::stops_start(what, REPAIR));
    }
}
