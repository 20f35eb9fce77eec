//! Tests of the store as a whole; they need its inside for the failing disk.

mod append;
mod bit_flip;
mod codec;
mod crash_images;
mod damage;
mod device;
mod fail_stop;
mod fairness;
mod fault_disk;
mod faults;
mod fuzzed;
mod handmade;
mod judging;
mod mixed_run;
mod model;
mod model_queries;
mod offline;
mod projections;
mod queries;
mod repair;
mod retention;
mod retention_crashes;
mod scrub;
mod segments;
mod support;
mod torn_tail;
