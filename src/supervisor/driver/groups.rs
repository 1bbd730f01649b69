//! Groups in the loop: what happens to their members goes in, who starts and who stops comes out.

use super::{
    Action, Driver,
    keep::next_seed,
    place::{Place, Timer},
};
use crate::{
    launch::SpecError,
    policy::{
        group::{
            AutoShutdown, GroupId, GroupIntensity, GroupSettings, Groups, Lifetime, MemberId, Node, Role, Strategy,
        },
        incarnation::{Ask, Input as Fact},
        members::{Input, Output, Verdict},
        restart::{Cause, Restart, Verdict as Own},
    },
    supervisor::{
        WorkerId,
        event::{Event, EventKind},
        group::{self, GroupError, GroupPolicy},
        guest::SharedSpec,
        kept::{Kept, Standing, Wish},
        stopping::Restarting,
        worker::WorkerShared,
    },
};
use crossbeam_channel::Sender;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What is wanted of groups.
#[derive(Debug)]
pub(in super::super) enum GroupCommand {
    Add {
        group: group::GroupId,
        parent: Option<group::GroupId>,
        policy: GroupPolicy,
        answer: Sender<Result<(), GroupError>>,
    },
    AddWorker {
        group: group::GroupId,
        shared: Arc<WorkerShared>,
        spec: SharedSpec,
        answer: Sender<Result<(), GroupError>>,
    },
    Remove {
        worker: WorkerId,
        answer: Sender<Result<(), GroupError>>,
    },
    /// Gives those who are to begin anew.
    Start(group::GroupId, Sender<Restarting>),
    /// Gives those who are to end.
    Stop(group::GroupId, Sender<Vec<Arc<WorkerShared>>>),
    /// As `Stop`, and for good.
    Dissolve(group::GroupId, Sender<Result<Vec<Arc<WorkerShared>>, GroupError>>),
    /// As `Start`.
    Restart(group::GroupId, Sender<Restarting>),
}

/// Around all groups; it only holds them together.
const ROOT: GroupId = GroupId(0);

pub(super) fn no_groups() -> Groups {
    let intensity = GroupIntensity { restarts: 0, period: Duration::ZERO };
    let (strategy, auto_shutdown) = (Strategy::OneForOne, AutoShutdown::Never);
    Groups::new(ROOT, GroupSettings { strategy, auto_shutdown, intensity, stop_within: None })
}

fn member(worker: WorkerId) -> MemberId {
    MemberId(worker.0)
}

fn lifetime(restart: Restart) -> Lifetime {
    match restart {
        Restart::Never => Lifetime::Temporary,
        Restart::OnFailure => Lifetime::Transient,
        Restart::Always => Lifetime::Permanent,
    }
}

impl Driver {
    pub(super) fn obey_group(&mut self, command: GroupCommand) {
        match command {
            GroupCommand::Add { group, parent, policy, answer } => {
                let (group, parent) = (GroupId(group.0), parent.map_or(ROOT, |parent| GroupId(parent.0)));
                let role = Role { lifetime: lifetime(policy.restart), significant: policy.significant };
                let added = self.groups.add_group(group, parent, role, policy.settings());
                if added.is_ok() {
                    self.tell_groups(Input::Start(Node::Group(group)));
                }
                // Whoever has asked and gone hears nothing.
                drop(answer.send(added.map_err(GroupError::from)));
            }
            GroupCommand::AddWorker { group, shared, spec, answer } => {
                let added = self.add_member(GroupId(group.0), &shared, &spec);
                let is_added = added.is_ok();
                drop(answer.send(added));
                if is_added {
                    self.tell_groups(Input::Start(Node::Member(member(shared.id()))));
                }
            }
            GroupCommand::Remove { worker, answer } => {
                let node = Node::Member(member(worker));
                let may = self.groups.check_removal(node).map_err(GroupError::from);
                let is_removed = may.is_ok();
                drop(answer.send(may));
                if is_removed {
                    self.tell_groups(Input::Remove(node));
                }
            }
            GroupCommand::Start(group, answer) => self.begin_anew(Input::Start, group, &answer),
            GroupCommand::Stop(group, answer) => {
                let node = Node::Group(GroupId(group.0));
                // Whoever has asked and gone gets no answer.
                drop(answer.send(self.running(node)));
                self.tell_groups(Input::Stop(node));
            }
            GroupCommand::Dissolve(group, answer) => {
                let node = Node::Group(GroupId(group.0));
                let may = self.groups.check_removal(node).map_err(GroupError::from);
                let is_removed = may.is_ok();
                drop(answer.send(may.map(|()| self.running(node))));
                if is_removed {
                    self.tell_groups(Input::Remove(node));
                }
            }
            GroupCommand::Restart(group, answer) => self.begin_anew(Input::Restart, group, &answer),
        }
    }

    fn running(&self, node: Node) -> Vec<Arc<WorkerShared>> {
        self.members(node).filter(|kept| !kept.is_resting).map(|kept| Arc::clone(&kept.shared)).collect()
    }

    fn members(&self, node: Node) -> impl Iterator<Item = &Kept> {
        self.groups.members_under(node).into_iter().filter_map(|MemberId(id)| self.kept.get(&WorkerId(id)))
    }

    /// Answers with those who come back: of a start those who rested, of a restart all of them.
    fn begin_anew(&mut self, input: impl FnOnce(Node) -> Input, group: group::GroupId, answer: &Sender<Restarting>) {
        let node = Node::Group(GroupId(group.0));
        let input = input(node);
        let is_start = matches!(input, Input::Start(_));
        let before: BTreeMap<_, _> = (self.members(node))
            .filter(|kept| kept.is_resting || !is_start)
            .map(|kept| (kept.shared.id(), kept.shared.incarnation()))
            .collect();
        self.tell_groups(input);
        let comes_back = |kept: &&Kept| !kept.is_resting && kept.spec.restart.when() != Restart::Never;
        let anew = self.members(node).filter(comes_back);
        let anew = anew.filter_map(|kept| Some((Arc::clone(&kept.shared), *before.get(&kept.shared.id())?)));
        drop(answer.send(Restarting::new(anew)));
    }

    fn add_member(&mut self, group: GroupId, shared: &Arc<WorkerShared>, spec: &SharedSpec) -> Result<(), GroupError> {
        if self.closed || self.last_call.is_some() {
            return Err(GroupError::SupervisorGone);
        }
        let id = member(shared.id());
        let (ladder, within) = (spec.stop.longest(), self.groups.stop_within(group));
        if let Some(within) = within.filter(|within| *within < ladder) {
            let reason =
                format!("its stop ladder takes {ladder:?}, and its group's end no longer than {within:?}").into();
            return Err(SpecError::Conflict { settings: ["stop", "stop_within"], reason }.into());
        }
        if spec.restart.when() == Restart::Never && spec.restart.comes_back() {
            let reason = "some exits force its restart, and a member with `Restart::Never` is not restarted".into();
            return Err(GroupError::Refused { reason });
        }
        let role = Role { lifetime: lifetime(spec.restart.when()), significant: spec.is_significant };
        self.groups.add_member(id, group, role)?;
        for &(on, when) in &spec.after {
            if let Err(error) = self.groups.after(id, member(on), when) {
                // It has not been started, so it is forgotten at once.
                self.groups.handle(Input::Remove(Node::Member(id)), self.clock.now());
                return Err(error.into());
            }
        }
        let seed = next_seed(&mut self.seed, shared.id());
        let mut kept = Kept::new(shared, spec, Standing::Rests, seed);
        kept.is_member = true;
        self.kept.insert(shared.id(), kept);
        self.outlet.trace.meet(shared);
        Ok(())
    }

    /// Its user wants something of a member.
    pub(super) fn act_member(&mut self, worker: WorkerId, action: Action) {
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        let node = Node::Member(member(worker));
        match (kept.standing, action) {
            // Already on its way down: its own ladder goes on faster, of which its group need not hear.
            (Standing::Lives(place), Action::Stop) if kept.wish == Wish::End => self.input(place, Fact::Ask(Ask::Stop)),
            (Standing::Lives(place), Action::StopWithin(time)) if kept.wish == Wish::End => {
                self.input(place, Fact::Ask(Ask::StopWithin(time)));
            }
            // One that has ended stays so until it is started.
            (_, Action::Restart) if kept.is_resting => {}
            (_, Action::Restart) => self.tell_groups(Input::Restart(node)),
            (_, Action::Stop) => self.tell_groups(Input::Stop(node)),
            (standing, Action::StopWithin(time)) => {
                self.tell_groups(Input::Stop(node));
                let Standing::Lives(place) = standing else { return };
                if self.kept.get(&worker).is_some_and(|kept| kept.wish == Wish::End) {
                    self.input(place, Fact::Ask(Ask::StopWithin(time)));
                } else {
                    // It is told when those that need it have ended, and is killed in time all the same.
                    self.set_timer_after(time, Timer::ForceOne(place));
                }
            }
        }
    }

    /// Everybody in groups ends, in their order.
    pub(super) fn stop_groups(&mut self) {
        if self.kept.values().any(|kept| kept.is_member) {
            self.tell_groups(Input::StopAll);
        }
    }

    /// Everybody should have ended, also those who wait for others to end before them.
    pub(super) fn force(&mut self) {
        let late = self.kept.values().filter_map(Kept::place).collect();
        self.kill_at_once(late);
    }

    /// A group's end has had its time.
    pub(super) fn force_group(&mut self, group: GroupId) {
        // Those that still wait for others to end before them get no ladder any more.
        let late = self.members(Node::Group(group)).filter_map(Kept::place).collect();
        self.kill_at_once(late);
        for MemberId(id) in self.groups.members_under(Node::Group(group)) {
            if let Some(kept) = self.kept.get_mut(&WorkerId(id)) {
                kept.is_overdue = kept.standing == Standing::Starts;
            }
        }
    }

    pub(super) fn kill_at_once(&mut self, late: Vec<Place>) {
        for place in late {
            self.input(place, Fact::Ask(Ask::StopWithin(Duration::ZERO)));
        }
    }

    /// A member runs; it may be ready with that.
    pub(super) fn member_started(&mut self, worker: WorkerId) {
        if self.is_member(worker) {
            self.tell_groups(Input::Started(member(worker)));
        }
    }

    pub(super) fn member_ready(&mut self, worker: WorkerId) {
        if self.is_member(worker) {
            self.tell_groups(Input::Ready(member(worker)));
        }
    }

    fn is_member(&self, worker: WorkerId) -> bool {
        self.kept.get(&worker).is_some_and(|kept| kept.is_member)
    }

    /// An incarnation of a member has ended, with its tree, or could not begin.
    pub(super) fn left_member(&mut self, worker: WorkerId, cause: Cause) {
        let now = self.clock.now();
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        let success = match cause {
            Cause::Ended { status, .. } => kept.spec.restart.is_success(status),
            Cause::Unhealthy { .. } | Cause::NotStarted | Cause::CannotStart => false,
        };
        kept.standing = Standing::Rests;
        let verdict = match kept.verdict(cause, now) {
            Own::Again { after } => {
                kept.backoff = after;
                Verdict::Again
            }
            Own::Finished => Verdict::Finished,
            Own::GivenUp(why) => {
                self.tell(worker, EventKind::GaveUp(why));
                Verdict::GaveUp
            }
        };
        self.cause = worker;
        self.tell_groups(Input::Ended { member: member(worker), success, verdict });
    }

    /// What one input brings about may be an input itself: that has its turn when all of this one's outputs are done.
    fn tell_groups(&mut self, input: Input) {
        self.for_groups.push_back(input);
        if self.for_groups.len() > 1 {
            return;
        }
        while let Some(&input) = self.for_groups.front() {
            for output in self.groups.handle(input, self.clock.now()) {
                self.do_for_group(output);
            }
            self.for_groups.pop_front();
        }
        self.let_rest();
    }

    fn do_for_group(&mut self, output: Output) {
        match output {
            Output::Start(MemberId(id)) => {
                self.wish_well(WorkerId(id));
                self.start_again(WorkerId(id));
            }
            Output::Restart(MemberId(id)) => {
                let worker = WorkerId(id);
                self.wish_well(worker);
                let Some(kept) = self.kept.get(&worker) else { return };
                let after = kept.backoff;
                self.tell(worker, EventKind::Restarting { after });
                self.wait_for_restart(worker, after);
            }
            Output::Stop(MemberId(id)) => self.stop_member(WorkerId(id)),
            Output::DependencyFailed { member: MemberId(id), on: MemberId(on) } => {
                self.tell(WorkerId(id), EventKind::DependencyFailed { on: WorkerId(on) });
            }
            Output::GroupGaveUp(GroupId(id)) => self.tell(self.cause, EventKind::GroupGaveUp(group::GroupId(id))),
            Output::GroupEnds { group, within } => self.set_timer_after(within, Timer::Group(group)),
            Output::GroupEnded(GroupId(id)) => {
                self.timers.cancel(Timer::Group(GroupId(id)));
                self.tell(self.cause, EventKind::GroupEnded(group::GroupId(id)));
            }
            Output::Removed(Node::Member(MemberId(id))) => self.end(WorkerId(id)),
            Output::Removed(Node::Group(_)) => {}
        }
    }

    /// It is to run.
    fn wish_well(&mut self, worker: WorkerId) {
        if let Some(kept) = self.kept.get_mut(&worker) {
            kept.wish = Wish::Policy;
            kept.is_overdue = false;
        }
    }

    fn stop_member(&mut self, worker: WorkerId) {
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        kept.wish = Wish::End;
        match kept.standing {
            Standing::Lives(place) => self.input(place, Fact::Ask(Ask::Stop)),
            // It has arrived by now, and ends when that command is read.
            Standing::Starts if !self.starter.starts().cancel(worker) => {}
            Standing::Starts | Standing::Waits(_) | Standing::Held | Standing::Rests => {
                kept.standing = Standing::Rests;
                self.tell_groups(Input::Ended { member: member(worker), success: false, verdict: Verdict::Finished });
            }
        }
    }

    pub(super) fn tell(&mut self, worker: WorkerId, kind: EventKind) {
        self.outlet.send(match self.kept.get(&worker) {
            Some(Kept { shared, .. }) => Event::of(shared, shared.incarnation(), kind),
            None => Event::of_the_gone(worker, kind),
        });
    }

    /// Those whom their group does not want to run have ended, until it does.
    fn let_rest(&mut self) {
        for id in self.groups.take_touched() {
            let Some(kept) = self.kept.get_mut(&WorkerId(id.0)) else { continue };
            if !kept.is_member {
                continue;
            }
            let rests = kept.standing == Standing::Rests && self.groups.is_over(id);
            match (rests, kept.is_resting) {
                (true, false) => kept.shared.end(kept.last_exit()),
                (false, true) => kept.shared.wake(),
                (true, true) | (false, false) => {}
            }
            kept.is_resting = rests;
        }
    }
}
