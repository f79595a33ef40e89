//! An allocator that gives a thread no more than it may have, for tests and fuzz targets.
//!
//! What is over the ceiling is refused as on a machine without memory, so that the process ends there and
//! then: a reader that asks for what a file claims is found at the first try.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Ceiling;

#[global_allocator]
static ALLOCATOR: Ceiling = Ceiling;

thread_local! {
    /// Bytes that this thread has allocated less those it has freed, and how many it may have.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(isize::MAX) };
}

/// Calls `work`, in which this thread may hold so many bytes more than now.
pub(super) fn within<T>(bytes: isize, work: impl FnOnce() -> T) -> T {
    let before = MOST.replace(HELD.get().saturating_add(bytes));
    let result = work();
    MOST.set(before);
    result
}

/// Notes that a thread holds `bytes` more; `false` if it may not.
fn take(bytes: isize) -> bool {
    // A thread that ends has none of its own any more.
    let fits = HELD.try_with(|held| {
        let now = held.get().wrapping_add(bytes);
        let fits = bytes <= 0 || MOST.try_with(Cell::get).is_ok_and(|most| now <= most);
        if fits {
            held.set(now);
        }
        fits
    });
    fits.unwrap_or(true)
}

// SAFETY: everything is the system's allocator's, which keeps the contract; a null pointer says that
// there is no memory.
unsafe impl GlobalAlloc for Ceiling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's own promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        take(-(layout.size() as isize));
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !take(size as isize - layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
