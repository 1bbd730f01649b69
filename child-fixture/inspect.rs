//! Prints the attributes of this process as JSON.

use crate::kernel;
use serde_json::{Map, Value, json};
use std::{env, error::Error, ffi::OsString, fs, path::Path, process};

pub(crate) fn everything() -> Result<Value, Box<dyn Error>> {
    let (parent, group, session) = kernel::process_ids();
    let status = fs::read_to_string("/proc/self/status")?;
    let text = |bytes: OsString| bytes.to_string_lossy().into_owned();
    let environment: Map<String, Value> =
        env::vars_os().map(|(name, value)| (text(name), text(value).into())).collect();
    Ok(json!({
        "fds": descriptors()?,
        "limits": limits(),
        "cwd": env::current_dir()?,
        "umask": kernel::umask(),
        "nice": kernel::nice(),
        "io_priority": kernel::io_priority(),
        "processors": line(&status, "Cpus_allowed_list:").trim(),
        "pid": process::id(),
        "ppid": parent,
        "pgid": group,
        "sid": session,
        "pdeathsig": kernel::death_signal(),
        "blocked": signals(&status, "SigBlk:"),
        "ignored": signals(&status, "SigIgn:"),
        "env": environment,
        "argv": env::args_os().map(text).collect::<Vec<_>>(),
    }))
}

/// The resident memory of this process.
pub(crate) fn rss_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = line(&status, "VmRSS:").split_whitespace().next().ok_or("no VmRSS in /proc/self/status")?;
    Ok(kib.parse::<u64>()? * 1024)
}

fn descriptors() -> Result<Vec<Value>, Box<dyn Error>> {
    let listing = format!("/proc/{}/fd", process::id());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        let target = fs::read_link(entry.path())?;
        // Without the listing's own descriptor.
        if target != Path::new(&listing) {
            let (descriptor, status) = kernel::flags(number);
            found.push((
                number,
                json!({
                    "fd": number, "target": target, "cloexec": descriptor & libc::FD_CLOEXEC != 0, "flags": status,
                }),
            ));
        }
    }
    found.sort_by_key(|(number, _)| *number);
    Ok(found.into_iter().map(|(_, description)| description).collect())
}

/// Numbered as on Linux on x86-64 and `AArch64`.
const LIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// The soft and hard value of each limit.
fn limits() -> Value {
    (0..)
        .zip(LIMITS)
        .map(|(resource, name)| (name.to_owned(), json!(kernel::limit(resource))))
        .collect::<Map<_, _>>()
        .into()
}

/// A signal set in a line of `/proc/self/status`, in hexadecimal.
fn signals(status: &str, name: &str) -> u64 {
    u64::from_str_radix(line(status, name), 16).unwrap_or_default()
}

fn line<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}
