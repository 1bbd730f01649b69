//! Tasks for a sequence of requests.

use crate::pool::workers::{
    core::{NewTask, Patience, RefusedTask},
    error::{SubmitError, TaskError, TaskErrorKind},
    pool::Pool,
    task::{FinishedTask, Task},
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::to_raw_value;
use std::{
    borrow::Borrow,
    collections::{HashMap, VecDeque},
    iter::FusedIterator,
};

/// The requests that are not submitted yet.
struct Source<'a, Request, Response, I> {
    pool: &'a Pool<Request, Response>,
    requests: I,
    /// One that found the queue full.
    refused: Option<NewTask>,
    is_over: bool,
}

/// What became of the next request.
enum Next<Response> {
    Task(Task<Response>),
    Error(TaskError),
    /// The queue is full.
    Full,
    /// There is no other request.
    End,
}

impl<Request, Response, I> Source<'_, Request, Response, I>
where
    Request: Serialize,
    I: Iterator<Item: Borrow<Request>>,
{
    /// Submits the next request.
    fn next(&mut self, patience: Patience) -> Next<Response> {
        let new = match self.refused.take() {
            Some(new) => new,
            None if self.is_over => return Next::End,
            None => {
                let Some(request) = self.requests.next() else {
                    self.is_over = true;
                    return Next::End;
                };
                match to_raw_value(request.borrow()) {
                    Ok(request) => NewTask { request, name: None, terms: self.pool.terms },
                    Err(error) => return Next::Error(not_accepted(SubmitError::Encode(error))),
                }
            }
        };
        match self.pool.submit_new(new, patience) {
            Ok(task) => Next::Task(task),
            Err(refused) => match *refused {
                RefusedTask { error: SubmitError::Full { .. }, task } => {
                    self.refused = Some(task);
                    Next::Full
                }
                RefusedTask { error, .. } => Next::Error(not_accepted(error)),
            },
        }
    }
}

fn not_accepted(error: SubmitError) -> TaskError {
    TaskError { request: "task".into(), attempts: 0, kind: TaskErrorKind::NotAccepted(Box::new(error)) }
}

impl<Request: Serialize, Response: DeserializeOwned> Pool<Request, Response> {
    /// Runs a task for each request. The results are returned in the order of the requests, one for each.
    ///
    /// Requests are taken from `requests` as results are: as many tasks are open as workers can have at once, and the
    /// [limit](crate::pool::PoolBuilder::queue_limit) of the queue more. The first are submitted by the first call of `next`. Dropping the iterator
    /// cancels those that are open.
    pub fn map<I>(&self, requests: I) -> Map<'_, Request, Response, I::IntoIter>
    where
        I: IntoIterator<Item: Borrow<Request>>,
    {
        Map::new(self, requests.into_iter())
    }

    /// As [`map`](Self::map), in the order in which the tasks end, each with the index of its request.
    #[doc(alias = "as_completed")]
    #[doc(alias = "imap_unordered")]
    pub fn map_unordered<I>(&self, requests: I) -> MapUnordered<'_, Request, Response, I::IntoIter>
    where
        I: IntoIterator<Item: Borrow<Request>>,
        Response: Send + 'static,
    {
        MapUnordered::new(self, requests.into_iter())
    }
}

/// The results of [`Pool::map`], in the order of the requests.
#[must_use = "tasks are submitted as results are taken"]
pub struct Map<'a, Request, Response, I> {
    source: Source<'a, Request, Response, I>,
    open: VecDeque<Result<Task<Response>, TaskError>>,
}

impl<'a, Request, Response, I> Map<'a, Request, Response, I> {
    pub(crate) fn new(pool: &'a Pool<Request, Response>, requests: I) -> Self {
        Self { source: Source { pool, requests, refused: None, is_over: false }, open: VecDeque::new() }
    }
}

impl<Request, Response, I> Iterator for Map<'_, Request, Response, I>
where
    Request: Serialize,
    Response: DeserializeOwned,
    I: Iterator<Item: Borrow<Request>>,
{
    type Item = Result<Response, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.open.len() < self.source.pool.lookahead() {
            let patience = if self.open.is_empty() { Patience::Until(None) } else { Patience::None };
            match self.source.next(patience) {
                Next::Task(task) => self.open.push_back(Ok(task)),
                Next::Error(error) => self.open.push_back(Err(error)),
                Next::Full | Next::End => break,
            }
        }
        self.open.pop_front().map(|task| task.and_then(Task::wait))
    }
}

/// The results of [`Pool::map_unordered`], in the order in which the tasks end.
#[must_use = "tasks are submitted as results are taken"]
pub struct MapUnordered<'a, Request, Response, I> {
    source: Source<'a, Request, Response, I>,
    finished: Receiver<FinishedTask<Response>>,
    sender: Sender<FinishedTask<Response>>,
    /// The indices of the open tasks, by their numbers.
    open: HashMap<u64, usize>,
    next_index: usize,
}

impl<'a, Request, Response, I> MapUnordered<'a, Request, Response, I> {
    pub(crate) fn new(pool: &'a Pool<Request, Response>, requests: I) -> Self {
        let (sender, finished) = crossbeam_channel::unbounded();
        let source = Source { pool, requests, refused: None, is_over: false };
        Self { source, finished, sender, open: HashMap::new(), next_index: 0 }
    }
}

impl<Request, Response, I> Iterator for MapUnordered<'_, Request, Response, I>
where
    Request: Serialize,
    Response: DeserializeOwned + Send + 'static,
    I: Iterator<Item: Borrow<Request>>,
{
    type Item = (usize, Result<Response, TaskError>);

    fn next(&mut self) -> Option<Self::Item> {
        while self.open.len() < self.source.pool.lookahead() {
            let patience = if self.open.is_empty() { Patience::Until(None) } else { Patience::None };
            let index = self.next_index;
            match self.source.next(patience) {
                Next::Task(task) => {
                    self.next_index += 1;
                    self.open.insert(task.number(), index);
                    task.detach_to(self.sender.clone());
                }
                Next::Error(error) => {
                    self.next_index += 1;
                    return Some((index, Err(error)));
                }
                Next::Full | Next::End => break,
            }
        }
        if self.open.is_empty() {
            return None;
        }
        // Each open task ends, so this blocks no longer than the slowest.
        let finished = self.finished.recv().ok()?;
        let index = self.open.remove(&finished.number())?;
        Some((index, finished.into_result()))
    }
}

impl<Request, Response, I> Drop for MapUnordered<'_, Request, Response, I> {
    fn drop(&mut self) {
        self.open.keys().for_each(|number| self.source.pool.cancel(*number));
    }
}

impl<Request, Response, I> FusedIterator for Map<'_, Request, Response, I>
where
    Request: Serialize,
    Response: DeserializeOwned,
    I: Iterator<Item: Borrow<Request>>,
{
}

impl<Request, Response, I> std::fmt::Debug for Map<'_, Request, Response, I> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Map").field("open", &self.open.len()).finish_non_exhaustive()
    }
}

impl<Request, Response, I> std::fmt::Debug for MapUnordered<'_, Request, Response, I> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MapUnordered").field("open", &self.open.len()).finish_non_exhaustive()
    }
}
