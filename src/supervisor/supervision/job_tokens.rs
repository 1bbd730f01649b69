//! Tokens of a jobserver for jobs: a job of a queue with a jobserver has a slot first, and then waits for a token.

use crate::{
    ids::WorkerId,
    jobserver::client::JobserverClient,
    supervisor::{
        events::{event::Event, warning::Warning},
        reactor::{timers::Timer, token::Token},
        supervision::{Supervision, SupervisionContext, worker::WorkerPhase},
    },
};
use std::time::Duration;

/// The time after which a token is requested again if that has failed.
const RETRY_TIME: Duration = Duration::from_millis(50);

impl Supervision {
    /// Whether a job that is to be started needs no token, or has one. If not, it waits for one.
    pub(crate) fn has_token(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) -> bool {
        let Some(record) = self.workers.get_mut(&worker) else { return false };
        let Some(job) = &record.job else { return true };
        if job.token.is_some() || job.shared.queue.jobserver.get().is_none() {
            return true;
        }
        record.phase = WorkerPhase::Queued;
        self.token_waits.jobs.push_back(worker);
        self.hand_out_tokens(cx);
        false
    }

    /// Starts the jobs for which there is a token. Watches the jobserver while others wait.
    pub(crate) fn hand_out_tokens(&mut self, cx: &mut SupervisionContext<'_>) {
        while let Some(&worker) = self.token_waits.jobs.front() {
            let waiting = self.workers.get_mut(&worker).filter(|record| record.phase == WorkerPhase::Queued);
            let job = waiting.and_then(|record| record.job.as_mut()).filter(|job| job.has_slot);
            let client = job.as_ref().and_then(|job| job.shared.queue.jobserver.get().cloned());
            let (Some(job), Some(client)) = (job, client) else {
                // It has ended meanwhile.
                self.token_waits.jobs.pop_front();
                continue;
            };
            match client.try_acquire() {
                Ok(Some(token)) => {
                    job.token = Some(token);
                    self.token_waits.jobs.pop_front();
                    self.start_again(worker, cx);
                }
                Ok(None) => return self.watch_jobserver(client, cx),
                // As many as can be recorded, or out of memory.
                Err(_) => {
                    self.unwatch_jobserver(cx);
                    return cx.reactor.set_timer_after(RETRY_TIME, Timer::Jobserver);
                }
            }
        }
        self.unwatch_jobserver(cx);
    }

    fn watch_jobserver(&mut self, client: JobserverClient, cx: &mut SupervisionContext<'_>) {
        if self.token_waits.watched.is_none() {
            let added = cx.reactor.poller.add(&client, Token::Jobserver.as_u64());
            self.token_waits.watched = Some(client);
            if let Some(refusal) = cx.reactor.note_registration(Token::Jobserver, Some(added)) {
                cx.sink.send(Event::warning(Warning::from(refusal)));
            }
        }
    }

    fn unwatch_jobserver(&mut self, cx: &mut SupervisionContext<'_>) {
        if let Some(client) = self.token_waits.watched.take() {
            // Fails if the registration was refused.
            drop(cx.reactor.poller.remove(&client));
        }
    }
}
