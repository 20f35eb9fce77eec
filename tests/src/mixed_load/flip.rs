//! One bit of what a killed broker has stored is flipped: in the body of a delayed message whose time has not come.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::plan::body_mark;

/// Segments that are looked through.
const YOUNGEST: usize = 2;

/// Flips a bit of the body of message `id` wherever it lies in the log below `root`. False: it is not there.
pub(super) fn flip(root: &Path, id: &str) -> io::Result<bool> {
    let mark = body_mark(id);
    let mut found = false;
    for segment in segments(root)? {
        let bytes = std::fs::read(&segment)?;
        let places = bytes.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark.as_bytes());
        for (at, _) in places {
            // Behind the mark, so that it is found again.
            let at = at + mark.len();
            let file: File = OpenOptions::new().write(true).open(&segment)?;
            file.write_all_at(&[bytes[at] ^ 1], at as u64)?;
            found = true;
        }
    }
    Ok(found)
}

fn segments(root: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root.join("store/commitlog"))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    // Names are offsets: the newest are last, and the message is young.
    paths.sort_unstable();
    Ok(paths.split_off(paths.len().saturating_sub(YOUNGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_the_body_is_flipped_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (directory, whole) = (root.path().join("store/commitlog"), format!("x{}yz", body_mark("id-1")));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("0"), &whole).unwrap();
        assert!(!flip(root.path(), "id-2").unwrap());
        assert!(flip(root.path(), "id-1").unwrap());
        assert_eq!(std::fs::read_to_string(directory.join("0")).unwrap(), whole.replace("yz", "xz"));
    }
}
