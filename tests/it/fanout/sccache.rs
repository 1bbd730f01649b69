//! sccache (Debian's package) as the compiler: its server outlives the build that started it.

use super::{fanout, run, write};
use crate::foreign::program;
use pipewright::WorkerSpec;
use std::{
    fs,
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const FILES: usize = 8;

/// A server of its own, which is stopped at the end.
struct Cache {
    sccache: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
}

impl Cache {
    fn new(sccache: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { sccache: sccache.into(), directory: tempfile::tempdir().unwrap(), port }
    }

    fn variables(&self) -> [(&str, String); 3] {
        let directory = self.directory.path().to_str().unwrap().to_owned();
        [
            ("SCCACHE_DIR", directory),
            ("SCCACHE_SERVER_PORT", self.port.to_string()),
            ("SCCACHE_IDLE_TIMEOUT", "300".to_owned()),
        ]
    }

    fn command(&self, argument: &str) -> Command {
        let mut command = Command::new(&self.sccache);
        command.args([argument, "--stats-format", "json"]).envs(self.variables());
        command
    }

    /// The hits and misses that the running server has counted.
    fn hits_and_misses(&self) -> (u64, u64) {
        let output = self.command("--show-stats").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let count = |name: &str| json["stats"][name]["counts"]["C/C++"].as_u64().unwrap_or(0);
        (count("cache_hits"), count("cache_misses"))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        drop(self.command("--stop-server").stdout(Stdio::null()).stderr(Stdio::null()).status());
    }
}

/// Writes files and a compilation database of them. Returns the commands.
fn project(directory: &Path, database: &str, files: Range<usize>, sccache: &Path) -> Vec<String> {
    let line = |number| format!("{} gcc -O1 -c f{number}.c -o f{number}.o", sccache.display());
    let lines: Vec<String> = files.clone().map(line).collect();
    for number in files.clone() {
        write(directory, &format!("f{number}.c"), &format!("int f{number}(void) {{ return {number}; }}\n"));
    }
    let entry =
        |(number, line)| serde_json::json!({"directory": directory, "file": format!("f{number}.c"), "command": line});
    let entries: Vec<_> = files.zip(&lines).map(entry).collect();
    write(directory, database, &serde_json::to_string(&entries).unwrap());
    lines
}

#[test]
fn foreign_sccache_has_as_many_hits_as_under_xargs_and_is_not_killed() {
    let Some(sccache) = program("sccache") else { return };
    let directory = tempfile::tempdir().unwrap();
    let lines = project(directory.path(), "files.json", 0..FILES, &sccache);
    project(directory.path(), "start.json", FILES..FILES + 1, &sccache);
    let script = write(directory.path(), "lines", &lines.join("\n"));
    let build = |cache: &Cache, database: &str| {
        let spec = fanout().arg(directory.path().join(database)).args(["-j2", "-B"]);
        let spec = cache.variables().into_iter().fold(spec, |spec, (name, value)| WorkerSpec::env(spec, name, value));
        let run = run(&spec);
        assert!(run.exit.success() && run.stdout.contains(" built, 0 failed"), "{}", run.stdout);
    };
    let by_fanout = |cache: &Cache| build(cache, "files.json");
    let by_xargs = |cache: &Cache| {
        let input = fs::File::open(&script).unwrap();
        let mut xargs = Command::new("xargs");
        xargs.args(["-P2", "-I{}", "sh", "-c", "{}"]).current_dir(directory.path()).envs(cache.variables());
        assert!(xargs.stdin(input).status().unwrap().success());
    };
    let builders: [&dyn Fn(&Cache); 2] = [&by_fanout, &by_xargs];
    let files = FILES as u64;
    for first in builders {
        let cache = Cache::new(&sccache);
        // One compilation starts the server: two of sccache's clients that do so at once can fail. The counts are those of one server,
        // which is neither killed with this `fanout` nor started again later.
        build(&cache, "start.json");
        assert_eq!(cache.hits_and_misses(), (0, 1));
        first(&cache);
        assert_eq!(cache.hits_and_misses(), (0, files + 1));
        first(&cache);
        assert_eq!(cache.hits_and_misses(), (files, files + 1));
        // The other one finds the same objects.
        by_fanout(&cache);
        by_xargs(&cache);
        assert_eq!(cache.hits_and_misses(), (3 * files, files + 1));
    }
}
