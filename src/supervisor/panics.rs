//! Calls of user code on threads of the supervisor: its panics must not affect other workers.

use crate::sys::deferred_close;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls `run`. Returns `None` if it panics, which the panic hook has already reported. The payload is dropped on another thread, since its
/// destructor may panic or block.
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
