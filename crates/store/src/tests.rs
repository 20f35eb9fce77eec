//! Tests of the store as a whole; they need its inside for the failing disks.

mod append;
mod codec;
mod crash_images;
mod damage;
mod faults;
mod projections;
mod segments;
mod support;
mod torn_tail;
