//! Everything the library promises, proven through its public face with real processes.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests start threads, and std's own commands to compare with")]
#![expect(clippy::items_after_statements, reason = "a figure stands where it is used")]

mod kernel;
mod support;

mod anonymous;
mod answers;
mod chaos;
mod control;
mod denied;
mod fanout;
mod foreign_text;
mod groups;
mod guard;
mod health;
mod house;
mod inspection;
mod inheritance;
mod injection;
mod keep_alive;
mod launch;
mod limits;
mod loop_end;
mod named;
mod notify;
mod peers;
mod pseudo_terminal;
mod readme;
mod real_programs;
mod shown;
mod smuggling;
mod starts;
mod supervision;
mod supervisor;
mod survivors;
mod terminal;
#[cfg(feature = "tracing")]
mod trace;
mod tree;
mod tunnel;
mod wire;
