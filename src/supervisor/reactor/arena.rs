//! Where incarnations live in the event loop.

use crate::supervisor::incarnation::Live;

/// A place for one incarnation. The count tells a late report about a former occupant from one about the present one.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) occupants: u32,
    pub(crate) live: Option<Box<Live>>,
}

/// The place of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) occupant: u32,
}

/// The incarnation that a report is about, if it is still there.
pub(crate) fn live_at(slots: &mut [Slot], place: Place) -> Option<&mut Live> {
    slots.get_mut(place.slot).filter(|slot| slot.occupants == place.occupant)?.live.as_deref_mut()
}
