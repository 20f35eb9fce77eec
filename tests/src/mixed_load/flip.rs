//! One bit of what a killed broker has stored is flipped: in the body of a delayed message whose time has not come.

use std::io;
use std::path::Path;

use super::plan::body_mark;
use crate::files;

/// Segments that are looked through.
const YOUNGEST: usize = 2;

/// Flips a bit of the body of message `id` wherever it lies in the log below `root`. False: it is not there.
pub(super) fn flip(root: &Path, id: &str) -> io::Result<bool> {
    let mark = body_mark(id);
    let mut found = false;
    // The message is young.
    let segments = files::segments(&root.join("store/commitlog"))?;
    for (_, segment) in segments.iter().rev().take(YOUNGEST) {
        let bytes = std::fs::read(segment)?;
        let places = bytes.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark.as_bytes());
        for (at, _) in places {
            // Behind the mark, so that it is found again.
            files::flip(segment, (at + mark.len()) as u64)?;
            found = true;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_the_body_is_flipped_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (directory, whole) = (root.path().join("store/commitlog"), format!("x{}yz", body_mark("id-1")));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("0.log"), &whole).unwrap();
        assert!(!flip(root.path(), "id-2").unwrap());
        assert!(flip(root.path(), "id-1").unwrap());
        assert_eq!(std::fs::read_to_string(directory.join("0.log")).unwrap(), whole.replace("yz", "xz"));
    }
}
