//! Workers of mixed behaviour for the chaos test, chosen by the seed.

use crate::{Options, Outcome, kernel, talk};
use pipewright::Parent;
use std::{
    env,
    error::Error,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    process,
    time::Duration,
};

/// Numbers its messages from 0, each padded to the size in `--pad`; then it behaves as `--kind` specifies.
///
/// Notes the number of written messages in a file of its worker in the directory `--tally`, eight bytes for each incarnation.
pub(crate) fn run(options: &Options) -> Result<u8, Box<dyn Error>> {
    let mut parent = Teller::new(options)?;
    let count: u64 = options.number("count")?;
    match options.get("kind") {
        Some("crash") => {
            parent.say(count);
            return Ok(3);
        }
        Some("abort") => {
            parent.say(count);
            process::abort();
        }
        Some("hang") => {
            parent.say(count);
            kernel::wait_for_nothing(Duration::from_secs(1000));
        }
        Some("stubborn") => {
            kernel::ignore(libc::SIGTERM);
            parent.say(count);
            kernel::wait_for_nothing(Duration::from_secs(1000));
        }
        Some("flood") => parent.say(u64::MAX),
        Some("daemons") => {
            daemon()?;
            parent.say(count);
            return Ok(4);
        }
        Some("leak") => {
            kernel::fork_holding(options.handle("messages")?.number(), true, 1000);
            parent.say(count);
            return Ok(5);
        }
        Some("notice") => {
            parent.say(count / 2);
            talk::send_datagram("READY=1", 1)?;
            parent.say(count);
        }
        Some("serve") => {
            parent.say(count);
            parent.parent.serve(1, |request| Ok(request.method().len()));
        }
        Some("input") => {
            parent.say(count);
            io::stdin().read_to_end(&mut Vec::new())?;
        }
        other => return Err(format!("--kind {other:?}").into()),
    }
    Ok(0)
}

/// Sends numbers, and notes how many of them were written.
struct Teller {
    parent: Parent,
    pad: String,
    said: u64,
    tally: File,
    incarnation: u64,
}

impl Teller {
    fn new(options: &Options) -> Result<Self, Box<dyn Error>> {
        // RUN.WORKER.INCARNATION. follows those of supervisors further up.
        let token = env::var("PIPEWRIGHT_TREE")?;
        let mut parts = token.rsplit(':').next().unwrap_or_default().split('.').skip(1);
        let worker = parts.next().ok_or("no worker")?;
        let incarnation = parts.next().ok_or("no incarnation")?.parse()?;
        let path = Path::new(options.get("tally").ok_or("--tally is missing")?).join(worker);
        let tally = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let pad = "x".repeat(options.number("pad")?);
        Ok(Self { parent: Parent::from_args()?, pad, said: 0, tally, incarnation })
    }

    /// Until this many have been sent in total.
    fn say(&mut self, count: u64) {
        while self.said < count {
            // The parent can end it in the middle.
            if self.parent.send(&(self.said, &self.pad)).is_err() {
                break;
            }
            self.said += 1;
            // The file exists and has room for one number: this does not fail.
            drop(self.tally.write_all_at(&self.said.to_ne_bytes(), self.incarnation * 8));
        }
    }
}

/// Leaves a process in a session of its own behind, which holds none of this process's descriptors.
#[expect(clippy::disallowed_methods, reason = "an unmodified worker starts processes with std")]
fn daemon() -> Outcome {
    let null = process::Stdio::null;
    process::Command::new("setsid")
        .args(["sleep", "1000"])
        .envs(env::vars_os())
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .spawn()?;
    Ok(())
}
