//! A host that limits a worker's tree, and prints the result.

use crate::{Options, Outcome};
use pipewright::{StdinMode, Supervisor, Worker, WorkerSpec, limits::CgroupLimit};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

const FILES: [&str; 4] = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"];

/// `[--memory-bytes N] [--millicores N] [--processes N] --script TEXT`: prints a line of JSON about a shell that runs the script once it
/// reads a line feed from standard input, and about another worker after it.
pub(crate) fn run(options: &Options) -> Outcome {
    let script = options.get("script").unwrap_or_default();
    let mut spec = WorkerSpec::new("/bin/sh").args(["-c", &format!("read -r _; {script}")]).stdin(StdinMode::Pipe);
    if options.get("memory-bytes").is_some() {
        spec = spec.cgroup_limit(CgroupLimit::MemoryMax(options.number("memory-bytes")?));
    }
    if options.get("millicores").is_some() {
        spec = spec.cgroup_limit(CgroupLimit::CpuMax(options.number("millicores")?));
    }
    if options.get("processes").is_some() {
        spec = spec.cgroup_limit(CgroupLimit::PidsMax(options.number("processes")?));
    }
    let supervisor = Supervisor::new()?;
    let mut output = match supervisor.spawn(spec) {
        Ok(worker) => ending(&worker)?,
        Err(error) => json!({
            "step": error.step().map(|step| format!("{step:?}")),
            "kind": error.io_error().map(|error| format!("{:?}", error.kind())),
            "reason": error.io_error().map(ToString::to_string),
        }),
    };
    let next = supervisor.spawn(WorkerSpec::new("cat").stdin(StdinMode::Pipe))?;
    output["next"] = json!(format!("{:?}", next.containment().map(|it| it.kind)));
    println!("{output}");
    Ok(())
}

fn ending(worker: &Worker) -> Result<Value, Box<dyn std::error::Error>> {
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", worker.pid().unwrap_or_default()))?;
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned();
    let directory = Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/'));
    let read = |file: &&str| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        Some(((*file).to_owned(), Value::from(text.trim())))
    };
    let files: Map<String, Value> = FILES.iter().filter_map(read).collect();
    let contained = format!("{:?}", worker.containment().map(|it| it.kind));
    let mut stdin = worker.take_stdin().ok_or("no standard input")?;
    std::io::Write::write_all(&mut stdin, b"\n")?;
    let exit = worker.wait();
    Ok(json!({
        "cgroup": cgroup,
        "contained": contained,
        "files": files,
        "code": exit.code(),
        "signal": exit.signal(),
        "oom_killed": exit.oom_killed,
        "text": exit.to_string(),
    }))
}
