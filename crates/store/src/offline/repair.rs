//! Repairing a stopped store: first what would be done, then the steps of it, one after the other. Nothing is thrown away:
//! what is overwritten or taken out of the log lies in the directory `quarantine` before.
//!
//! A step that a crash interrupts leaves the store as it was before; planning again finds what is left to do.

pub(super) mod files;

use std::fmt;
use std::path::PathBuf;

use super::Offline;
use super::examine::{self, Examined, Misplaced};
use super::index;
use super::survey::SegmentFile;
use crate::damage::Damage;
use crate::directory::{Identity, LogId, MAX_OWNER_BYTES};
use crate::error::OpenError;
use crate::report::{Finding, IndexState, Progress, Severity};
use crate::snapshot;

/// What a repair is allowed to do beyond giving up what is lost anyway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// Whose store it shall be.
    pub owner: Option<String>,
    /// Give up the state of which no snapshot is left.
    pub forget_state: bool,
    /// The log offset of a snapshot that is not to be used any more.
    pub set_aside_snapshot: Option<u64>,
}

/// What a repair would do.
#[derive(Debug)]
pub struct Plan {
    /// In this order. Empty: there is nothing to do.
    pub steps: Vec<Step>,
    /// What it does nothing about.
    pub remaining: Vec<Finding>,
    log: Option<LogId>,
}

/// One step of a repair; says what it does.
#[derive(Debug)]
pub struct Step(Action);

#[derive(Debug)]
enum Action {
    Identity { identity: Identity, why: String },
    SetAside { path: PathBuf, why: &'static str },
    Pad(SegmentFile),
    Fill { from: u64, to: u64 },
    Extend { at: u64, length: u64 },
    GiveUp { segment: SegmentFile, stretches: Vec<(Damage, u64)>, index: IndexState },
    Index { segment: SegmentFile, why: String },
    Forget { log_start: u64, end: u64 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Action::Identity { identity, why } => {
                write!(f, "write the file identity with owner {:?}: {why}", identity.owner)
            }
            Action::SetAside { path, why } => {
                let name = path.file_name().unwrap_or_default().display();
                write!(f, "move {name} to quarantine: {why}")
            }
            Action::Pad(segment) => {
                let (base, missing) = (segment.base, segment.padded() - segment.length);
                write!(f, "add {missing} zeros to the segment at {base}, to make its last page whole")
            }
            Action::Fill { from, to } => {
                write!(f, "put a segment into {from}..{to} that says that its {} bytes are lost", to - from)
            }
            Action::Extend { at, .. } => write!(f, "put an empty segment at {at}, where the log goes on"),
            Action::GiveUp { stretches, .. } => {
                for (number, (Damage { from, to, reason }, _)) in stretches.iter().enumerate() {
                    let bytes = to - from;
                    let sep = if number > 0 { "\n" } else { "" };
                    write!(
                        f,
                        "{sep}give up {from}..{to} ({bytes} bytes), after a copy to quarantine: {reason}"
                    )?;
                }
                Ok(())
            }
            Action::Index { segment, why } => {
                write!(f, "build the index file of the segment at {} anew: {why}", segment.base)
            }
            Action::Forget { log_start, end } => write!(
                f,
                "give up topics, groups and consumer progress that were recorded in front of {log_start}, and all \
                 consumer progress in front of {end}: topics without a record from there on are gone, their \
                 messages can only be dumped; groups get again what is stored"
            ),
        }
    }
}

pub(super) fn plan(
    offline: &Offline,
    options: &RepairOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Plan, OpenError> {
    let examined = examine::examine(offline, progress)?;
    let mut plan = Plan { steps: Vec::new(), remaining: Vec::new(), log: examined.survey.log };
    // A newer version's files are not ours to change.
    if examined.survey.is_of_other_version || examined.unsupported {
        plan.remaining = examined.report.findings;
        return Ok(plan);
    }
    plan.identity(&examined, options);
    // Without knowing which log it is nothing can be told from damage.
    if examined.survey.log.is_none() {
        return Ok(plan);
    }
    plan.misplaced(&examined);
    plan.damage(&examined);
    plan.snapshots(&examined, options);
    Ok(plan)
}

impl Plan {
    fn push(&mut self, action: Action) {
        self.steps.push(Step(action));
    }

    fn refuse(&mut self, what: String, remedy: &str) {
        self.remaining.push(Finding::stops_start(what, remedy));
    }

    fn identity(&mut self, examined: &Examined, options: &RepairOptions) {
        let wanted = options.owner.as_ref();
        if wanted.is_some_and(|owner| owner.len() > MAX_OWNER_BYTES) {
            return self.refuse("the owner's name is longer than 1024 bytes".into(), "give a shorter one");
        }
        match (&examined.survey.identity, examined.survey.log) {
            (Ok(identity), _) => {
                if let Some(owner) = wanted.filter(|owner| **owner != identity.owner) {
                    let why = format!("it was {:?}", identity.owner);
                    let identity = Identity { owner: owner.clone(), ..identity.clone() };
                    self.push(Action::Identity { identity, why });
                }
            }
            (Err(reason), Some(log)) => match wanted {
                Some(owner) => {
                    let identity = Identity { log, owner: owner.clone() };
                    self.push(Action::Identity { identity, why: reason.clone() });
                }
                None => self.refuse(reason.clone(), "say whose store it is: --owner CLUSTER/BROKER"),
            },
            (Err(reason), None) => {
                self.refuse(
                    reason.clone(),
                    "put the file back from a backup: no other file says which log this is",
                );
            }
        }
    }

    fn misplaced(&mut self, examined: &Examined) {
        let file = |base: u64| examined.survey.files.iter().find(|file| file.base == base);
        for misplaced in &examined.misplaced {
            let set_aside =
                |base: u64, why| file(base).map(|file| Action::SetAside { path: file.path.clone(), why });
            let action = match misplaced {
                Misplaced::Missing(range) => Some(Action::Fill { from: range.start, to: range.end }),
                Misplaced::End { at, length } => Some(Action::Extend { at: *at, length: *length }),
                Misplaced::Empty(base) => set_aside(*base, "it is empty"),
                Misplaced::Surplus(base) => {
                    set_aside(*base, "it lies behind the end of the log and holds no record")
                }
                Misplaced::Odd(base) => file(*base).map(|file| Action::Pad(file.clone())),
                Misplaced::Overlap(base) => {
                    let what = format!("the segment at {base} lies in the one in front of it");
                    self.refuse(what, "move the one away that does not belong here");
                    None
                }
            };
            self.steps.extend(action.map(Step));
        }
    }

    fn damage(&mut self, examined: &Examined) {
        let mut damage = examined.damage.iter().cloned().peekable();
        for report in &examined.report.segments {
            let Some(segment) = examined.survey.files.iter().find(|file| file.base == report.base) else {
                continue;
            };
            let mut stretches = Vec::new();
            while let Some(own) = damage.next_if(|(own, _)| own.from < segment.end()) {
                stretches.push(own);
            }
            if !stretches.is_empty() {
                let index = report.index.clone();
                self.push(Action::GiveUp { segment: segment.clone(), stretches, index });
            } else if let IndexState::Damaged(why) = &report.index {
                self.push(Action::Index { segment: segment.clone(), why: why.clone() });
            }
        }
    }

    fn snapshots(&mut self, examined: &Examined, options: &RepairOptions) {
        let survey = &examined.survey;
        let mut intact: Vec<u64> =
            survey.snapshots.iter().filter(|file| file.content.is_ok()).map(|file| file.log_offset).collect();
        if let Some(offset) = options.set_aside_snapshot {
            match survey.snapshots.iter().find(|file| file.log_offset == offset) {
                Some(file) => {
                    self.push(Action::SetAside {
                        path: file.path.clone(),
                        why: "it is not to be used any more",
                    });
                    intact.retain(|own| *own != offset);
                }
                None => self.refuse(
                    format!("there is no snapshot of log offset {offset}"),
                    "`karman store stat` shows those there are",
                ),
            }
        }
        let log_start = survey.log_start();
        let usable = intact.iter().max().copied().filter(|offset| *offset >= log_start);
        let needs_one = log_start > 0 && usable.is_none();
        if options.forget_state {
            match usable {
                Some(offset) => self.refuse(
                    format!("the snapshot of log offset {offset} is intact: no state has to be given up"),
                    "if a broker refuses it, set it aside first: --set-aside-snapshot OFFSET",
                ),
                None => {
                    let same = survey.snapshots.iter().find(|file| file.log_offset == log_start);
                    if let Some(same) = same.filter(|_| options.set_aside_snapshot != Some(log_start)) {
                        self.push(Action::SetAside { path: same.path.clone(), why: "it is damaged" });
                    }
                    self.push(Action::Forget { log_start, end: examined.end });
                }
            }
        } else if needs_one {
            self.refuse(
                format!("the log begins at {log_start} and no intact snapshot is as new as that"),
                "restore one from a backup, or give up the state with --forget-state",
            );
        }
    }

    /// A start would fail even after all steps.
    pub fn stays_closed(&self) -> bool {
        self.remaining.iter().any(|finding| finding.severity == Severity::StopsStart)
    }
}

pub(super) fn apply(offline: &Offline, plan: &Plan, done: &mut dyn FnMut(&Step)) -> Result<(), OpenError> {
    for step in &plan.steps {
        let log = plan.log.unwrap_or(LogId([0; 16]));
        step.0.apply(offline, log)?;
        done(step);
    }
    Ok(())
}

impl Action {
    fn apply(&self, offline: &Offline, log: LogId) -> Result<(), OpenError> {
        let disk = &*offline.disk;
        let root = &offline.root;
        match self {
            Action::Identity { identity, .. } => {
                identity.write(disk, root).map_err(OpenError::io("write the identity of", root))
            }
            Action::SetAside { path, .. } => {
                files::set_aside(offline, path).map_err(OpenError::io("move to quarantine", path))
            }
            Action::Pad(segment) => {
                files::pad(offline, segment).map_err(OpenError::io("complete", &segment.path))
            }
            Action::Fill { from, to } => files::fill(offline, log, *from..*to)
                .map_err(OpenError::io("make a segment in", &offline.commit_log())),
            Action::Extend { at, length } => {
                let directory = offline.commit_log();
                let made = crate::segment::Segment::create(offline.disk.clone(), &directory, *at, *length);
                made.map(drop).map_err(OpenError::io("make a segment in", &directory))
            }
            Action::GiveUp { segment, stretches, index: state } => {
                // First: it is right before and after the rest, and alone knows which places in queues were taken.
                if let (IndexState::Sound, Some(index)) = (state, segment.index(log).1) {
                    let lost: Vec<_> = stretches.iter().map(|(damage, _)| damage.from..damage.to).collect();
                    index::write(offline, segment, log, &mut index::without(&index, &lost))?;
                }
                files::give_up(offline, log, segment, stretches)
                    .map_err(OpenError::io("give up a part of", &segment.path))?;
                match state {
                    IndexState::Damaged(_) => rebuild(offline, segment, log),
                    IndexState::Sound | IndexState::None => Ok(()),
                }
            }
            Action::Index { segment, .. } => rebuild(offline, segment, log),
            Action::Forget { log_start, end } => {
                let directory = root.join("snapshot");
                snapshot::write_given_up(disk, &directory, log, *log_start, *end)
                    .map_err(OpenError::io("write a snapshot to", &directory))
            }
        }
    }
}

fn rebuild(offline: &Offline, segment: &SegmentFile, log: LogId) -> Result<(), OpenError> {
    let (mut contents, _) = index::from_log(segment, log, &mut |_| true)?;
    index::write(offline, segment, log, &mut contents)
}
