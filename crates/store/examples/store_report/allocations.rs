//! Counts what the log writer's thread allocates. The allocator below it is the one the product uses.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Counting = Counting(MiMalloc);

static MADE: AtomicU64 = AtomicU64::new(0);
static RELEASED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting(MiMalloc);

fn count(counter: &AtomicU64) {
    if IS_COUNTED.get() {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes unchanged to an allocator that keeps the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&MADE);
        // SAFETY: as promised by the caller.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(&MADE);
        // SAFETY: as promised by the caller.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(&MADE);
        // SAFETY: as promised by the caller.
        unsafe { self.0.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(&RELEASED);
        // SAFETY: as promised by the caller.
        unsafe { self.0.dealloc(memory, layout) }
    }
}

/// From now on the calling thread is counted, if it is a log writer.
pub(crate) fn count_here() {
    if !IS_COUNTED.get() && std::thread::current().name() == Some("log-writer") {
        IS_COUNTED.set(true);
    }
}

/// From now on the calling thread is counted, whatever it is.
pub(crate) fn count_everything_here() {
    IS_COUNTED.set(true);
}

/// What counted threads did so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allocations {
    pub(crate) made: u64,
    pub(crate) released: u64,
}

impl Allocations {
    pub(crate) fn now() -> Self {
        Self { made: MADE.load(Ordering::Relaxed), released: RELEASED.load(Ordering::Relaxed) }
    }
}

impl Sub for Allocations {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { made: self.made - before.made, released: self.released - before.released }
    }
}
