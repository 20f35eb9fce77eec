//! The files of a broker's log, as a test finds and harms them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The segment files below `commitlog` and where they start, in order.
pub fn segments(commitlog: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(commitlog)? {
        let path = entry?.path();
        let start = path.file_stem().and_then(|name| name.to_str()?.parse().ok());
        if let Some(start) = start.filter(|_| path.extension().is_some_and(|end| end == "log")) {
            found.push((start, path));
        }
    }
    found.sort();
    Ok(found)
}

/// One bit of the byte at `at` becomes another.
pub fn flip(path: &Path, at: u64) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)
}
