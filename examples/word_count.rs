//! Counts the words of files in four processes, each of which runs a function of this program: `word_count FILE...`
#![expect(clippy::print_stdout, reason = "its output")]

use pipewright::{
    Supervisor,
    pool::{self, Functions, Pool},
};
use std::{env, error::Error, fs, io};

/// Runs in a process of its own.
fn count_words(path: String) -> io::Result<usize> {
    Ok(fs::read_to_string(path)?.split_whitespace().count())
}

fn main() -> Result<(), Box<dyn Error>> {
    pool::init(Functions::new().function(count_words)); // does not return in a worker
    let supervisor = Supervisor::new()?;
    let pool = Pool::of_function(&supervisor, count_words)?.workers(1..=4).retries(2).build()?;
    let paths: Vec<String> = env::args().skip(1).collect();
    for (path, words) in paths.iter().zip(pool.map(&paths)) {
        match words {
            Ok(words) => println!("{words:7} {path}"),
            Err(error) => println!("{path}: {error}"),
        }
    }
    Ok(())
}
