//! What a user has given us to call on a thread of ours: a panic in it is his own affair, and everybody else's workers live on.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// What a user's code gives; nothing where it panics. The panic hook has told of that by then.
pub(super) fn unharmed<T>(run: impl FnOnce() -> T) -> Option<T> {
    let payload = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => return Some(done),
        Err(payload) => payload,
    };
    // It can be anything, also something that panics when it is dropped. What that leaves is left alone.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        forget(payload);
    }
    None
}

#[expect(clippy::mem_forget, reason = "to drop it would be to ask for the next panic")]
fn forget<T>(payload: T) {
    mem::forget(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    struct Grenade(u32);

    impl Drop for Grenade {
        fn drop(&mut self) {
            if let Some(less) = self.0.checked_sub(1) {
                panic_any(Self(less));
            }
        }
    }

    #[test]
    fn whatever_is_thrown_stays_there() {
        assert_eq!(unharmed(|| 1), Some(1));
        for pins in 0..3 {
            assert_eq!(unharmed(|| panic_any(Grenade(pins))), None::<()>);
        }
    }
}
