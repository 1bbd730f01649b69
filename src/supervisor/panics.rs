//! What a user has given us to call on a thread of ours: a panic in it is his own affair, and everybody else's workers live on.

use crate::sys::deferred_close;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a user's code gives; nothing where it panics. The panic hook has told of that by then. What it panicked with can be anything,
/// also something that panics or blocks when it is dropped: that is done elsewhere.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(run)).map_err(deferred_close::drop_in_background).ok()
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
        assert_eq!(catch(|| 1), Some(1));
        for pins in 0..3 {
            assert_eq!(catch(|| panic_any(Grenade(pins))), None::<()>);
        }
    }
}
