//! A C library (libgit2, 217 files) compiled by a build tool: seconds, from nothing and with nothing to do.
//!
//! | peer | how |
//! |---|---|
//! | `fanout` | `examples/fanout` with the compilation database of CMake |
//! | `ninja` | CMake's build files for Ninja |
//! | `make` | CMake's makefiles, `make -jN` |
//! | `xargs` | `xargs -P` over the lines of the compilation database, each run by `sh`; it cannot know that nothing is to do |
//!
//! N is the number of cores. `ninja` and `make` also make the archive of the objects, which takes about 0.1 s. All run in turn. The source
//! comes from the package `libgit2-sys` on crates.io, without its system dependencies.

use crate::{
    Done, Failed, Options,
    figures::{median, now, ratio, tell},
};
use serde::{Deserialize, Serialize};
use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

const PACKAGE: &str = "libgit2-sys";
const MANIFEST: &str = "\
[package]
name = \"fetch\"
version = \"0.0.0\"
edition = \"2024\"
[lib]
path = \"lib.rs\"
[dependencies]
libgit2-sys = { version = \"=0.18.8\", default-features = false }
[workspace]
";
const CMAKE_OPTIONS: [&str; 11] = [
    "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
    "-DCMAKE_BUILD_TYPE=Debug",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DBUILD_TESTS=OFF",
    "-DBUILD_CLI=OFF",
    "-DUSE_HTTPS=OFF",
    "-DUSE_SSH=OFF",
    "-DUSE_BUNDLED_ZLIB=ON",
    "-DREGEX_BACKEND=builtin",
    "-DUSE_HTTP_PARSER=builtin",
    "-DUSE_ICONV=OFF",
];
const PEERS: [&str; 4] = ["fanout", "ninja", "make", "xargs"];
const ROUNDS: usize = 5;

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    peer: &'static str,
    s_median: f64,
    /// The fastest and the slowest round.
    spread: [f64; 2],
    files: usize,
}

#[derive(Debug, Serialize)]
struct Verdict {
    bench: &'static str,
    fanout_over_fastest: f64,
    nothing_to_do_over_ninja: f64,
}

/// An entry of a compilation database.
#[derive(Debug, Deserialize)]
struct Entry {
    directory: PathBuf,
    command: String,
}

pub(crate) fn run(options: &Options) -> Done {
    let project = Project::new()?;
    let rounds = if options.quick { 1 } else { ROUNDS };
    let mut full = vec![Vec::new(); PEERS.len()];
    let mut nothing = vec![Vec::new(); PEERS.len()];
    for _ in 0..rounds {
        for (place, peer) in PEERS.into_iter().enumerate() {
            project.clean(peer)?;
            full[place].push(project.build(peer)?);
            if peer != "xargs" {
                nothing[place].push(project.build(peer)?);
            }
        }
    }
    let full = project.tell("build", full)?;
    let nothing = project.tell("build-nothing", nothing)?;
    let fastest_peer = full.iter().skip(1).copied().fold(f64::INFINITY, f64::min);
    let ([fanout, ..], [no_fanout, no_ninja, ..]) = (&full[..], &nothing[..]) else { return Ok(()) };
    Ok(tell(&Verdict {
        bench: "build-verdict",
        fanout_over_fastest: ratio(*fanout, fastest_peer),
        nothing_to_do_over_ninja: ratio(*no_fanout, *no_ninja),
    })?)
}

/// The library, configured for each peer in a directory of its own.
struct Project {
    root: PathBuf,
    fanout: PathBuf,
    jobs: String,
    files: usize,
}

impl Project {
    fn new() -> Result<Self, Failed> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let root = repository.join("target/bench-build");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let vendor = root.join("vendor");
        if !vendor.join(PACKAGE).exists() {
            fs::create_dir_all(root.join("fetch"))?;
            fs::write(root.join("fetch/Cargo.toml"), MANIFEST)?;
            fs::write(root.join("fetch/lib.rs"), "")?;
            run_quietly(command(&cargo).arg("vendor").arg(&vendor).current_dir(root.join("fetch")))?;
        }
        let source = vendor.join(PACKAGE).join("libgit2");
        for (peer, generator) in [("ninja", "Ninja"), ("make", "Unix Makefiles"), ("xargs", "Unix Makefiles")] {
            let configure = ["-G", generator];
            let mut cmake = command("cmake");
            cmake.arg("-S").arg(&source).arg("-B").arg(root.join(peer)).args(configure).args(CMAKE_OPTIONS);
            run_quietly(&mut cmake)?;
        }
        let build = ["build", "--quiet", "--release", "--example", "fanout"];
        run_quietly(command(&cargo).args(build).current_dir(&repository))?;
        let jobs = thread::available_parallelism()?.to_string();
        let mut project = Self { fanout: repository.join("target/release/examples/fanout"), root, jobs, files: 0 };
        let entries: Vec<Entry> = serde_json::from_slice(&fs::read(project.database())?)?;
        project.files = entries.len();
        let lines: Vec<_> =
            entries.iter().map(|entry| format!("cd {} && {}\n", entry.directory.display(), entry.command)).collect();
        fs::write(project.root.join("commands"), lines.concat())?;
        Ok(project)
    }

    fn database(&self) -> PathBuf {
        self.root.join("xargs/compile_commands.json")
    }

    fn directory(&self, peer: &str) -> PathBuf {
        self.root.join(peer)
    }

    fn clean(&self, peer: &str) -> Done {
        match peer {
            "fanout" if self.directory(peer).exists() => Ok(fs::remove_dir_all(self.directory(peer))?),
            "fanout" => Ok(()),
            "ninja" => run_quietly(command("ninja").arg("-C").arg(self.directory(peer)).args(["-t", "clean"])),
            _ => run_quietly(command("make").arg("-C").arg(self.directory(peer)).arg("clean")),
        }
    }

    /// Returns the seconds it took.
    fn build(&self, peer: &str) -> Result<f64, Failed> {
        let mut program = match peer {
            "fanout" => {
                let mut fanout = command(&self.fanout);
                fanout.arg(self.database()).arg("--out").arg(self.directory(peer)).args(["--jobs", &self.jobs]);
                fanout
            }
            "ninja" => {
                let mut ninja = command("ninja");
                ninja.arg("-C").arg(self.directory(peer)).args(["-j", &self.jobs]);
                ninja
            }
            "make" => {
                let mut make = command("make");
                make.arg("-C").arg(self.directory(peer)).args(["-j", &self.jobs]);
                make
            }
            _ => {
                let mut xargs = command("xargs");
                xargs.args(["-d", "\n", "-n", "1", "-P", &self.jobs, "sh", "-c"]);
                xargs.stdin(File::open(self.root.join("commands"))?);
                xargs
            }
        };
        let began = now();
        run_quietly(&mut program)?;
        Ok((now() - began).as_secs_f64())
    }

    /// Writes a line for each peer that was measured, and returns the medians of all.
    fn tell(&self, bench: &'static str, seconds: Vec<Vec<f64>>) -> Result<Vec<f64>, Failed> {
        let mut medians = Vec::new();
        for (peer, seconds) in PEERS.into_iter().zip(seconds) {
            let spread = [f64::INFINITY, 0.0];
            let spread =
                seconds.iter().fold(spread, |[low, high], s| [milliseconds(s.min(low)), milliseconds(s.max(high))]);
            let is_measured = !seconds.is_empty();
            let s_median = milliseconds(median(seconds));
            if is_measured {
                tell(&Line { bench, peer, s_median, spread, files: self.files })?;
            }
            medians.push(s_median);
        }
        Ok(medians)
    }
}

/// Seconds, rounded to a thousandth.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs a program. Its output is shown if it fails.
#[expect(clippy::disallowed_methods, reason = "the peers are measured as their users start them")]
fn run_quietly(command: &mut Command) -> Done {
    let output = command.output();
    let output = output.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}\n{}", command.get_program().display(), output.status, String::from_utf8_lossy(&text)).into())
}
