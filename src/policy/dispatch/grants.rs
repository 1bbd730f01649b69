//! What the tasks of a pool take of a budget that they share with others.

use super::{dispatcher::Dispatch, grant_counts::ClassGrants, ids::DemandClass, task::DispatchOutput, waiting::Place};
use std::time::Instant;

impl Dispatch {
    /// The budget has granted a request.
    pub(crate) fn granted(&mut self, class: DemandClass, now: Instant) {
        let grants = self.grants.of(class);
        grants.requested = grants.requested.saturating_sub(1);
        grants.free += 1;
        self.fill(now);
    }

    /// Requests grants for the tasks that could be sent, and returns those that none needs.
    pub(super) fn adjust_grants(&mut self) {
        for class in self.grants.classes() {
            let wanted = self.count_sendable(class);
            let ClassGrants { requested, free } = *self.grants.of(class);
            for _ in requested + free..wanted {
                self.grants.of(class).requested += 1;
                self.outputs.push(DispatchOutput::Request(class));
            }
            for _ in wanted..free {
                self.grants.of(class).free -= 1;
                self.outputs.push(DispatchOutput::Return(class));
            }
        }
    }

    /// How many tasks of a class could be sent now, if the budget had room for them.
    fn count_sendable(&self, class: DemandClass) -> usize {
        let (mut room, mut keyed, mut empty) = (0, 0, 0);
        for (load, member) in self.members.free() {
            let free = self.settings.in_flight - load;
            room += free;
            keyed += self.waiting.count(Place::Keyed(member), class).min(free);
            empty += usize::from(load == 0);
        }
        let suspects = self.waiting.count(Place::Suspects, class).min(empty);
        (self.waiting.count(Place::General, class) + suspects + keyed).min(room)
    }
}
