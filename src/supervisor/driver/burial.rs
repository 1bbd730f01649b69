//! The end of a tree: who has outlived a worker is found, named, killed, and waited for; only then the worker is reaped.

use super::{
    Driver,
    place::{Place, Target, Timer, live_at},
};
use crate::{
    supervisor::{
        live::LONGEST_DEATH,
        pen::Cell,
        survivors::Survivors,
        tree::{self, Ancestor, Found, Sought},
    },
    sys::{
        poll,
        proc::{self, Held},
    },
};
use std::{os::fd::AsFd, time::Duration};

/// How often descendants are looked for before those that keep coming are left to be told.
const ROUNDS: u32 = 100;
/// How many descriptors are kept for the end of a tree: to look, and to hold a few whom to kill.
const RESERVE: usize = 8;
/// How soon it is looked again where nobody could be held.
const AGAIN: Duration = Duration::from_millis(10);

impl Driver {
    /// The worker has ended, and its streams have. Takes its status as soon as nobody of its tree is left.
    pub(super) fn bury(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        if let Some(is_populated) = live.present.with_cell(Cell::is_populated) {
            if !is_populated {
                return self.reap_alone(place);
            }
            let mut found = live.present.with_cell(inhabitants).unwrap_or_default();
            if found.is_empty() {
                self.reserve.clear();
                found = live.present.with_cell(inhabitants).unwrap_or_default();
            }
            self.mourn(place, found);
            return self.keep_reserve();
        }
        if live.spec.survivors == Survivors::Leave {
            return self.reap(place);
        }
        let ancestor = Ancestor {
            pid: live.present.child().pid().cast_signed(),
            token: live.present.token(),
            lived: self.clock.now().saturating_duration_since(live.started),
            started_since: self.starter.started().saturating_sub(live.starts_before),
            others: &self.own,
        };
        let sought = &mut live.burial.get_or_insert_default().sought;
        let mut found = self.search.descendants(&ancestor, sought, || self.clock.now());
        if self.search.take_shortage() {
            self.reserve.clear();
            found = found.and(self.search.descendants(&ancestor, sought, || self.clock.now()));
            // Whoever cannot be seen even so is looked for again.
            self.search.take_shortage();
        }
        match found {
            Found::These(found) if found.is_empty() && live.spec.survivors == Survivors::Kill => self.reap_alone(place),
            Found::These(found) if found.is_empty() => self.reap(place),
            Found::These(found) if live.spec.survivors == Survivors::Report => {
                let pipes = live.pipes();
                live.survivors.extend(found.iter().map(|held| tree::survivor(held, &pipes)));
                // What was found so far is not found again.
                self.set_timer(self.clock.now(), Timer::Bury(place));
            }
            Found::These(found) => self.mourn(place, found),
            Found::NotBefore(due) => self.set_timer(due, Timer::Bury(place)),
        }
        self.keep_reserve();
    }

    /// A host that has used up its descriptors must not keep us from ending what its workers have started.
    pub(super) fn keep_reserve(&mut self) {
        while self.reserve.len() < RESERVE {
            let Ok(descriptor) = self.poller.as_fd().try_clone_to_owned() else { return };
            self.reserve.push(descriptor);
        }
    }

    /// Names survivors, kills them, and waits for their end.
    fn mourn(&mut self, place: Place, found: Vec<Held>) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        let pipes = live.pipes();
        let burial = live.burial.get_or_insert_default();
        // Those who are killed now may have started others before.
        burial.sought = Sought::default();
        for carrier in &found {
            if !live.survivors.iter().any(|known| known.pid == carrier.pid.unsigned_abs()) {
                live.survivors.push(tree::survivor(carrier, &pipes));
            }
        }
        burial.rounds += 1;
        let is_first = burial.rounds == 1;
        if is_first {
            burial.until = self.clock.now().checked_add(LONGEST_DEATH);
        }
        live.present.with_cell(Cell::kill);
        drop(live.present.child().signal_group(libc::SIGKILL));
        for carrier in found {
            drop(carrier.pidfd.signal(libc::SIGKILL));
            if self.poller.add(&carrier.pidfd, Target::Survivor(place).token()).is_ok() {
                burial.waited_for.push(carrier);
            }
        }
        if burial.waited_for.is_empty() {
            // Not one could be held or watched, for want of descriptors or memory.
            self.set_timer_after(AGAIN, Timer::Bury(place));
        }
        if is_first {
            self.set_timer_after(LONGEST_DEATH, Timer::BuryEnd(place));
        }
    }

    /// Takes the status of one of whose tree nothing is left.
    fn reap_alone(&mut self, place: Place) {
        if let Some(live) = live_at(&mut self.slots, place) {
            for survivor in &mut live.survivors {
                survivor.alive = false;
            }
        }
        self.reap(place);
    }

    /// A survivor has ended. When all have it is looked again.
    pub(super) fn buried(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        let Some(burial) = &mut live.burial else { return };
        let (gone, left): (Vec<Held>, Vec<Held>) =
            burial.waited_for.drain(..).partition(|held| poll::is_readable(held.pidfd.as_fd()).unwrap_or(true));
        for Held { pid, pidfd } in gone {
            for survivor in live.survivors.iter_mut().filter(|survivor| survivor.pid == pid.unsigned_abs()) {
                survivor.alive = false;
            }
            drop(self.poller.remove(&pidfd));
            // As process 1, or as a subreaper (prctl(2)), the host is the parent of those whose own have ended. ECHILD: it is not.
            drop(pidfd.reap());
        }
        burial.waited_for = left;
        if burial.waited_for.is_empty() {
            if burial.rounds < ROUNDS { self.bury(place) } else { self.reap(place) }
        }
    }

    /// It is time to look again, or to give up those that do not die.
    pub(super) fn bury_in_time(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.slots, place) else { return };
        match &mut live.burial {
            None => self.bury(place),
            Some(burial) if burial.until.is_some_and(|until| until <= self.clock.now()) => {
                for held in burial.waited_for.drain(..) {
                    drop(self.poller.remove(&held.pidfd));
                }
                self.reap(place);
            }
            Some(burial) if burial.waited_for.is_empty() => self.bury(place),
            Some(_) => {}
        }
    }
}

/// Who lives in a cgroup: zombies do not.
fn inhabitants(cell: &Cell) -> Vec<Held> {
    proc::hold(|| cell.cgroup.processes().unwrap_or_default())
}
