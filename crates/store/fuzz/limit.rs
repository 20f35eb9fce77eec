//! Stops a run that asks for more memory than its input can explain.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Limited;

/// What may be asked for yet; without limit outside of a run.
static LEFT_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);

// SAFETY: it does what `System` does, or nothing.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = layout.size();
        let take = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(bytes) };
        if LEFT_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            LEFT_BYTES.store(usize::MAX, Ordering::Relaxed);
            panic!("{bytes} bytes are more than the input can need");
        }
        // SAFETY: the caller keeps what `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: it came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Runs what reads an input of so many bytes. All it asks for together, given back or not, is limited.
pub fn held(input_bytes: usize, run: impl FnOnce()) {
    LEFT_BYTES.store((64 << 10) + 64 * input_bytes, Ordering::Relaxed);
    run();
    LEFT_BYTES.store(usize::MAX, Ordering::Relaxed);
}
