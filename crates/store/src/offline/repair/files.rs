//! The steps of a repair that change files: each durable when it returns, and undone or whole after a crash.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::survey::SegmentFile;
use super::super::{Offline, index};
use crate::config::MAX_SEGMENT_BYTES;
use crate::damage::Damage;
use crate::directory::LogId;
use crate::disk::{self, Disk};
use crate::index::sealed::{self, SealedIndex};
use crate::record::{Content, HEADER_BYTES, encode_filler};
use crate::segment::{PAGE_BYTES, file_name};
use crate::snapshot::offset_of;

/// So much is copied at once.
const PIECE_BYTES: u64 = 1 << 20;

fn make_quarantine(offline: &Offline) -> io::Result<std::path::PathBuf> {
    let quarantine = offline.quarantine();
    if !quarantine.is_dir() {
        offline.disk.create_directory(&quarantine)?;
        offline.disk.sync_directory(&offline.root)?;
    }
    Ok(quarantine)
}

/// Takes a file out of the store.
pub(in crate::offline) fn set_aside(offline: &Offline, path: &Path) -> io::Result<()> {
    let quarantine = make_quarantine(offline)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut to = quarantine.join(name);
    // An earlier one of the same name stays.
    for number in 1.. {
        if !to.try_exists()? {
            break;
        }
        to = quarantine.join(name).with_added_extension(number.to_string());
    }
    let from = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    offline.disk.rename(path, &to)?;
    // There before it is gone here.
    offline.disk.sync_directory(&quarantine)?;
    offline.disk.sync_directory(from)
}

/// Makes the last page of a segment file whole.
pub(super) fn pad(offline: &Offline, segment: &SegmentFile) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(&segment.path)?;
    let zeros = vec![0; (segment.padded() - segment.length) as usize];
    offline.disk.write_at(&file, &zeros, segment.length)?;
    offline.disk.sync_data(&file)
}

/// Makes segments that say that what was in `range` is lost. They take a page or two of space. Where index files of the
/// segments that were there are left, they go on saying which places in queues were taken.
pub(super) fn fill(offline: &Offline, log: LogId, range: Range<u64>) -> io::Result<()> {
    if !(range.end - range.start).is_multiple_of(PAGE_BYTES) {
        let what = format!(
            "{range:?} does not consist of whole pages; the files around it are not those of one log"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut from = range.start;
    while from < range.end {
        let (mut to, mut index) = (range.end.min(from + MAX_SEGMENT_BYTES), None);
        for (base, found) in indexes_in(offline, log, &range)? {
            if base == from && found.about().length <= range.end - from {
                to = base + found.about().length;
                index = Some(found);
            } else if base > from {
                to = to.min(base);
            }
        }
        if let Some(found) = index {
            let mut contents = index::without(&found, std::slice::from_ref(&(from..to)));
            sealed::write(&*offline.disk, found.path(), found.about(), &mut contents)?;
        }
        fill_one(offline, log, from..to)?;
        from = to;
    }
    Ok(())
}

/// Index files of which the segment would start in `range`.
fn indexes_in(offline: &Offline, log: LogId, range: &Range<u64>) -> io::Result<Vec<(u64, SealedIndex)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(offline.commit_log())? {
        let path = file?.path();
        let base = offset_of(&path, "idx").filter(|base| range.contains(base));
        let about = base.and_then(|_| sealed::about(&path)).filter(|about| about.log == log);
        if let (Some(base), Some(about)) = (base, about)
            && about.base == base
            && about.length.is_multiple_of(PAGE_BYTES)
            && let Ok(index) = SealedIndex::open(path, about)
        {
            found.push((base, index));
        }
    }
    found.sort_by_key(|(base, _)| *base);
    Ok(found)
}

fn fill_one(offline: &Offline, log: LogId, range: Range<u64>) -> io::Result<()> {
    let (from, length) = (range.start, range.end - range.start);
    let path = offline.commit_log().join(file_name(from, "log"));
    let aside = path.with_added_extension(disk::ASIDE);
    let mut page = Vec::with_capacity(PAGE_BYTES as usize);
    encode_filler(Content::Lost, from, length as u32, 0, 0, log.seal(), &mut page);
    page.resize(PAGE_BYTES as usize, 0);
    let file = offline.disk.create_file(&aside)?;
    offline.disk.write_at(&file, &page, 0)?;
    if length > PAGE_BYTES {
        offline.disk.write_at(&file, &vec![0; PAGE_BYTES as usize], length - PAGE_BYTES)?;
    }
    offline.disk.sync_data(&file)?;
    disk::put_in_place(&*offline.disk, &aside, &path)
}

/// Copies a part of a segment to the quarantine.
pub(in crate::offline) fn keep_copy(
    offline: &Offline,
    segment: &Path,
    base: u64,
    range: Range<u64>,
) -> io::Result<()> {
    let path = make_quarantine(offline)?.join(format!("{:020}-{:020}.bin", range.start, range.end));
    copy(&*offline.disk, &File::open(segment)?, base, range, &path)
}

/// Copies stretches of a segment to the quarantine and then says in their place that they are lost.
pub(super) fn give_up(
    offline: &Offline,
    log: LogId,
    segment: &SegmentFile,
    stretches: &[(Damage, u64)],
) -> io::Result<()> {
    let quarantine = make_quarantine(offline)?;
    let file = OpenOptions::new().read(true).write(true).open(&segment.path)?;
    for (damage, _) in stretches {
        let path = quarantine.join(format!("{:020}-{:020}.bin", damage.from, damage.to));
        copy(&*offline.disk, &file, segment.base, damage.from..damage.to, &path)?;
    }
    for (damage, time_ms) in stretches {
        write_lost(&*offline.disk, &file, log, segment.base, damage, *time_ms)?;
    }
    offline.disk.sync_data(&file)
}

fn copy(disk: &dyn Disk, from: &File, base: u64, range: Range<u64>, path: &Path) -> io::Result<()> {
    let aside = path.with_added_extension(disk::ASIDE);
    let to = disk.create_file(&aside)?;
    let mut at = range.start;
    while at < range.end {
        let mut piece = vec![0; (range.end - at).min(PIECE_BYTES) as usize];
        read_what_can_be_read(from, &mut piece, at - base);
        disk.write_at(&to, &piece, at - range.start)?;
        at += piece.len() as u64;
    }
    disk.sync_data(&to)?;
    disk::put_in_place(disk, &aside, path)
}

/// Pages that the device does not give stay zeros.
fn read_what_can_be_read(file: &File, piece: &mut [u8], at: u64) {
    if file.read_exact_at(piece, at).is_ok() {
        return;
    }
    let mut done = 0;
    while done < piece.len() {
        // Up to the end of a page of the file.
        let step = (PAGE_BYTES - (at + done as u64) % PAGE_BYTES).min((piece.len() - done) as u64) as usize;
        let page = &mut piece[done..done + step];
        if file.read_exact_at(page, at + done as u64).is_err() {
            page.fill(0);
        }
        done += step;
    }
}

fn write_lost(
    disk: &dyn Disk,
    file: &File,
    log: LogId,
    base: u64,
    damage: &Damage,
    time_ms: u64,
) -> io::Result<()> {
    let length = damage.to - damage.from;
    if length < HEADER_BYTES as u64 {
        let what = format!("{}..{} is too short for a record", damage.from, damage.to);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = Vec::with_capacity(PAGE_BYTES as usize);
    let length = u32::try_from(length).map_err(|_| io::Error::other("a segment has at most 2 GiB"))?;
    encode_filler(Content::Lost, damage.from, length, time_ms, 0, log.seal(), &mut bytes);
    // A page that cannot be read can only be written as a whole.
    if damage.from.is_multiple_of(PAGE_BYTES) && u64::from(length) >= PAGE_BYTES {
        bytes.resize(PAGE_BYTES as usize, 0);
    }
    disk.write_at(file, &bytes, damage.from - base)
}
