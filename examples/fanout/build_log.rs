//! The build log: for each step, its command, the state of its inputs and output, and how long it took.
//!
//! The file is text. A line is appended when a step has finished, in one write, so that a killed run loses at most the steps that
//! were running. A line is `p ID PATH`, which numbers a path, or `s STEP COMMAND STATE MILLISECONDS ID...`: three hashes in
//! hexadecimal and the numbers of the input files. The last line about a step counts. Reading ends at the first line that is torn or
//! not understood; what follows is cut off.

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};
use std::{
    collections::HashMap,
    error::Error,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

const HEADER: &[u8] = b"fanout build log 1\n";

/// The log is rewritten when it has more than this many lines about steps for each step.
const LINES_PER_STEP: usize = 4;

/// What is known of a step from the last run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// Hash of the command.
    pub(crate) command: u64,
    /// Hash of the inputs' and the output's sizes and times, or [`NEVER`].
    pub(crate) state: u64,
    pub(crate) millis: u64,
    pub(crate) inputs: Vec<PathId>,
}

/// The state of a step that failed, or whose inputs changed while it ran.
pub(crate) const NEVER: u64 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PathId(u32);

#[derive(Debug)]
pub(crate) struct BuildLog {
    path: PathBuf,
    /// Locked; `None` if the log cannot be written.
    file: Option<File>,
    records: HashMap<u64, Record>,
    ids: HashMap<OsString, PathId>,
    paths: Vec<OsString>,
    /// Number of paths that are in the file.
    written: usize,
    /// Number of lines about steps in the file.
    lines: usize,
}

impl BuildLog {
    /// Reads the log of the build directory `directory`, and locks it.
    pub(crate) fn open(directory: &Path) -> Result<Self, Box<dyn Error>> {
        let path = directory.join(".fanout_log");
        let named = |error: io::Error| format!("{}: {error}", path.display());
        let mut log = Self {
            file: None,
            records: HashMap::new(),
            ids: HashMap::new(),
            paths: Vec::new(),
            written: 0,
            lines: 0,
            path: path.clone(),
        };
        fs::create_dir_all(directory).map_err(named)?;
        let opened = File::options().read(true).append(true).create(true).open(&path);
        let mut file = match opened {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                return Ok(log);
            }
            opened => opened.map_err(named)?,
        };
        // Other errors are not reported: some network file systems have no locks.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK) {
            return Err(format!("{}: in use by another fanout", path.display()).into());
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(named)?;
        let valid = log.parse(&text);
        if valid < text.len() {
            file.set_len(valid as u64).map_err(named)?;
        }
        log.file = Some(file);
        if valid == 0 || log.lines > LINES_PER_STEP * log.records.len().max(16) {
            log.rewrite().map_err(named)?;
        }
        Ok(log)
    }

    /// Whether steps are recorded.
    pub(crate) fn is_writable(&self) -> bool {
        self.file.is_some()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn record(&self, step: u64) -> Option<&Record> {
        self.records.get(&step)
    }

    /// The number of a path.
    pub(crate) fn id(&mut self, path: &OsStr) -> PathId {
        if let Some(id) = self.ids.get(path) {
            return *id;
        }
        let id = PathId(u32::try_from(self.paths.len()).unwrap_or(u32::MAX));
        self.ids.insert(path.to_owned(), id);
        self.paths.push(path.to_owned());
        id
    }

    pub(crate) fn name(&self, id: PathId) -> &OsStr {
        self.paths.get(id.0 as usize).map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// The time of the file system, which runs behind the clock by up to a tick, in nanoseconds.
    pub(crate) fn file_time(&self) -> io::Result<i128> {
        let Some(file) = &self.file else { return Ok(0) };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        futimens(file, &Timestamps { last_access: now, last_modification: now })?;
        file.metadata().map(|metadata| modified(&metadata))
    }

    /// Appends what is known of a step after it has run. After an error nothing more is written.
    pub(crate) fn add(&mut self, step: u64, record: Record) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let written = (&*file).write_all(&self.lines_of(step, &record));
        if written.is_err() {
            self.file = None;
        }
        self.written = self.paths.len();
        self.records.insert(step, record);
        written
    }

    /// The line about a step, after those of the paths that are not yet in the file.
    fn lines_of(&self, step: u64, record: &Record) -> Vec<u8> {
        let mut text = Vec::new();
        for (number, path) in self.paths.iter().enumerate().skip(self.written) {
            text.extend_from_slice(format!("p {number} ").as_bytes());
            text.extend(escape(path.as_bytes()));
            text.push(b'\n');
        }
        let Record { command, state, millis, inputs } = record;
        let mut line = format!("s {step:x} {command:x} {state:x} {millis}");
        for PathId(number) in inputs {
            line.push(' ');
            line.push_str(&number.to_string());
        }
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        text
    }

    /// Replaces the file by one with a line for each step. It becomes visible when it is complete.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let mut file = File::options().append(true).create(true).open(&beside)?;
        file.set_len(0)?;
        let mut text = HEADER.to_vec();
        self.written = 0;
        for (step, record) in &self.records {
            text.extend(self.lines_of(*step, record));
            self.written = self.paths.len();
        }
        file.write_all(&text)?;
        // As in `open`, a file system without locks is no error.
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok();
        fs::rename(&beside, &self.path)?;
        self.lines = self.records.len();
        self.file = Some(file);
        Ok(())
    }

    /// Returns the length of what is valid.
    fn parse(&mut self, text: &[u8]) -> usize {
        let Some(mut rest) = text.strip_prefix(HEADER) else { return 0 };
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            if self.parse_line(line).is_none() {
                break;
            }
            rest = after.get(1..).unwrap_or_default();
        }
        self.written = self.paths.len();
        text.len() - rest.len()
    }

    fn parse_line(&mut self, line: &[u8]) -> Option<()> {
        let (kind, line) = line.split_at_checked(2)?;
        if kind == b"p " {
            let mut parts = line.splitn(2, |byte| *byte == b' ');
            let number = parts.next().and_then(number::<10>)?;
            let path = OsString::from_vec(unescape(parts.next()?));
            let is_next = number == self.paths.len() as u64 && !self.ids.contains_key(&path);
            is_next.then(|| _ = self.id(&path))
        } else if kind == b"s " {
            let mut words = line.split(|byte| *byte == b' ');
            let mut hash = || words.next().and_then(number::<16>);
            let (step, command, state) = (hash()?, hash()?, hash()?);
            let millis = words.next().and_then(number::<10>)?;
            let known = self.paths.len();
            let id = |word| {
                let number = number::<10>(word).and_then(|number| u32::try_from(number).ok())?;
                ((number as usize) < known).then_some(PathId(number))
            };
            let inputs = words.map(id).collect::<Option<_>>()?;
            self.records.insert(step, Record { command, state, millis, inputs });
            self.lines += 1;
            Some(())
        } else {
            None
        }
    }
}

/// Time of the last change in nanoseconds.
pub(crate) fn modified(metadata: &fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

fn number<const RADIX: u32>(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(word).ok()?, RADIX).ok()
}

fn escape(path: &[u8]) -> Vec<u8> {
    let escaped = |byte: &u8| match *byte {
        b'\n' => b"\\n".to_vec(),
        b'\\' => b"\\\\".to_vec(),
        byte => vec![byte],
    };
    path.iter().flat_map(escaped).collect()
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut path, mut bytes) = (Vec::with_capacity(text.len()), text.iter().copied());
    while let Some(byte) = bytes.next() {
        path.extend(if byte == b'\\' {
            bytes.next().map(|next| if next == b'n' { b'\n' } else { next })
        } else {
            Some(byte)
        });
    }
    path
}

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>. Unlike the standard library's hash it is the same in each version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes with their length, so that `ab`, `c` differs from `a`, `bc`.
    #[must_use]
    pub(crate) fn add(mut self, bytes: &[u8]) -> Self {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    /// Never [`NEVER`].
    pub(crate) fn finish(self) -> u64 {
        self.0.max(NEVER + 1)
    }
}
