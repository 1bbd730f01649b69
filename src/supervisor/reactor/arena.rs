//! Values that are named by keys, where a key of a former value is never taken for one of the present value.

/// A place for values of which each has a [`Key`] of its own.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<Box<T>>,
}

/// Names one value of an [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) slot: usize,
    /// Counts the values that had this slot: a late report about a former one has another generation.
    pub(crate) generation: u32,
}

impl<T> Arena<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            self.slots.len() - 1
        });
        let mut key = Key { slot, generation: 0 };
        if let Some(place) = self.slots.get_mut(slot) {
            place.generation = place.generation.wrapping_add(1);
            key.generation = place.generation;
            place.value = Some(Box::new(make(key)));
        }
        key
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.slots.get(key.slot).filter(|slot| slot.generation == key.generation)?.value.as_deref()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots.get_mut(key.slot).filter(|slot| slot.generation == key.generation)?.value.as_deref_mut()
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<T>> {
        let slot = self.slots.get_mut(key.slot).filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        self.free.push(key.slot);
        Some(value)
    }

    /// Removes all values.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Box<T>> {
        self.free.clear();
        self.slots.drain(..).filter_map(|slot| slot.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_a_removed_value_names_no_later_one() {
        let mut arena = Arena::new();
        let first = arena.insert_with(|_| "first");
        assert_eq!(arena.remove(first).as_deref(), Some(&"first"));
        let second = arena.insert_with(|_| "second");
        assert_eq!(second.slot, first.slot);
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get_mut(first), None);
        assert_eq!(arena.get(second), Some(&"second"));
        assert_eq!(arena.drain().map(|value| *value).collect::<Vec<_>>(), ["second"]);
    }
}
