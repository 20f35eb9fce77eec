//! Where a stored message's `system_properties` lies: kept in the record's header, so that delivery need not search it.

use std::ops::Range;

const TTL: u64 = 1 << 63;

/// Start and length, 31 and 32 bits, counted from the start of the message. The highest bit says that the message has a
/// time to live of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

impl Mark {
    /// The mark of a field.
    pub fn of(field: &Range<usize>) -> Self {
        Self((field.start as u64) << 32 | field.len() as u64)
    }

    /// The same, of a message with a time to live of its own.
    #[must_use]
    pub fn with_ttl(self, has_ttl: bool) -> Self {
        Self(if has_ttl { self.0 | TTL } else { self.0 })
    }

    /// Whether the message has a time to live of its own.
    pub fn has_ttl(self) -> bool {
        self.0 & TTL != 0
    }

    /// The field of a mark, within a message of `size` bytes; empty when the mark does not fit, which a checked record's
    /// never does.
    pub fn field(self, size: usize) -> Range<usize> {
        let (start, length) = (((self.0 & !TTL) >> 32) as usize, (self.0 & u64::from(u32::MAX)) as usize);
        if start + length <= size { start..start + length } else { 0..0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_gives_its_field_back_unless_it_does_not_fit() {
        assert_eq!(Mark::of(&(17..40)).field(100), 17..40);
        assert_eq!(Mark::of(&(17..40)).field(39), 0..0);
        let marked = Mark::of(&(17..40)).with_ttl(true);
        assert_eq!((marked.field(100), marked.has_ttl()), (17..40, true));
    }
}
