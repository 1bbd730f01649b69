//! Tests the promises of the library through its public API with real processes.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails at the first unexpected result"
)]
#![expect(clippy::disallowed_methods, reason = "tests start threads, and std commands for comparison")]
#![expect(clippy::items_after_statements, reason = "constants are next to their use")]

mod kernel;
mod support;

mod anonymous;
mod answers;
#[cfg(feature = "async")]
mod async_host;
mod attach;
mod call_set;
mod calls_between_incarnations;
mod causes;
mod chaos;
mod conformance;
mod control;
mod denied;
mod error_texts;
mod fanout;
mod final_events;
mod foreign;
mod foreign_text;
mod groups;
mod guard;
mod harness;
mod handshake;
mod health;
mod hello;
mod house;
mod inspection;
mod inheritance;
mod injection;
mod jobs;
mod jobserver;
mod jobserver_of_workers;
mod keep_alive;
mod launch;
mod limits;
mod loop_end;
mod named;
mod notify;
mod output;
mod peers;
mod plugin_host;
mod pool;
mod pseudo_terminal;
mod readme;
mod real_programs;
mod serving;
mod shown;
mod smuggling;
mod standalone;
mod starts;
mod stdio;
mod supervision;
mod supervisor;
mod survivors;
mod terminal;
#[cfg(feature = "tracing")]
mod trace;
mod tree;
mod tunnel;
mod unreceived;
mod wire;
mod worker_terminal;
