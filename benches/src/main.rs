//! What pipewright costs beside what its users would do without it: one JSON object a line, on standard output.
//!
//! Everything is measured on the machine it runs on, peers in turn within one run, and told as medians. Figures of two runs
//! compare only as ratios between peers.

mod figures; // clock, medians, and the lines of the output
mod memory; // a large parent; the only unsafe

mod all;
mod build;
mod call;
mod churn;
mod fan_out;
mod flood; // the child of `throughput`
mod pipes;
mod pool;
mod spawn;
mod throughput;

use std::{
    env,
    error::Error,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

const USAGE: &str = "\
usage: bench <command> [options]

commands:
  spawn       what starting a process costs, from a small parent and from a huge one
  throughput  how many messages a second come through
  pipes       how fast each kind of pipe is
  call        what a question and its answer cost
  churn       what a worker costs that ends at once and comes back, a hundred thousand times
  pool        how many small tasks a second a pool of workers does, beside Python, jest-worker and procspawn
  build       how long a C library takes to compile, beside ninja, make and xargs
  fanout      what one of thousands of jobs costs, beside threads, xargs, make and ninja
  all         all of these

options:
  --quick      a few small cases, in seconds: shows that it runs, not how fast
  --workers N  throughput: only this number of workers
  --bytes N    throughput: only this size of message
  --json FILE  all: also writes the lines to this file
";

/// What the command line asks for beside the command.
#[derive(Debug, Default)]
struct Options {
    quick: bool,
    workers: Option<usize>,
    bytes: Option<usize>,
    json: Option<PathBuf>,
}

type Failed = Box<dyn Error + Send + Sync>;
type Done = Result<(), Failed>;

fn main() -> ExitCode {
    procspawn::init(); // does not return in a worker of this peer
    let mut words = env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    if command == flood::COMMAND {
        return end_with(flood::run(&words));
    }
    if command == call::COMMAND {
        return end_with(call::serve(&words));
    }
    if command == pool::COMMAND {
        return end_with(pool::serve(&words));
    }
    let run: fn(&Options) -> Done = match command.as_str() {
        "spawn" => spawn::run,
        "throughput" => throughput::run,
        "pipes" => pipes::run,
        "call" => call::run,
        "churn" => churn::run,
        "build" => build::run,
        "fanout" => fan_out::run,
        "all" => all::run,
        "pool" => pool::run,
        "" => return refuse("a command is missing"),
        other => return refuse(&format!("there is no command `{other}`")),
    };
    match options(&words) {
        Ok(options) => end_with(run(&options)),
        Err(mistake) => refuse(&mistake),
    }
}

fn options(words: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || {
            let number = words.next().and_then(|text| text.parse().ok()).filter(|&number| number > 0);
            number.map(Some).ok_or_else(|| format!("`{word}` needs a number"))
        };
        match word.as_str() {
            "--quick" => options.quick = true,
            "--workers" => options.workers = number()?,
            "--bytes" => options.bytes = number()?,
            "--json" => options.json = Some(words.next().ok_or("`--json` needs a file")?.into()),
            other => return Err(format!("there is no option `{other}`")),
        }
    }
    Ok(options)
}

fn end_with(done: Done) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// A mistake on the command line.
fn refuse(mistake: &str) -> ExitCode {
    say(&format!("bench: {mistake}\n\n{USAGE}"));
    ExitCode::from(2)
}

fn say(text: &str) {
    // A closed standard error cannot show the error.
    drop(io::stderr().write_all(text.as_bytes()));
}
