//! A reader of what an attacker may have written that is not ours: where it panics, that is one more way to be refused.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `act` gives; none if it panics, of which nothing is printed.
pub(super) fn contained<T>(act: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_CONTAINED.get() {
                before(info);
            }
        }));
    });
    IS_CONTAINED.set(true);
    // What it leaves half done is its own caches, which are filled again or not at all.
    let result = panic::catch_unwind(AssertUnwindSafe(act));
    IS_CONTAINED.set(false);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer() {
        assert_eq!(contained(|| 1), Some(1));
        let empty: &[u32] = &[];
        assert_eq!(contained(|| empty[empty.len()]), None);
        assert!(!IS_CONTAINED.get());
    }
}
