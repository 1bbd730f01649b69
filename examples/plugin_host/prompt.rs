//! Commands on standard input.

use crossbeam_channel::Receiver;
use serde_json::Value;
use std::{
    io::{self, BufRead, Read},
    str::SplitWhitespace,
    thread,
    time::Duration,
};

pub(crate) const HELP: &str = "\
call PLUGIN METHOD [JSON] [within TIME]  call a method; JSON is an array or an object
cancel NUMBER                            cancel a call
list                                     show the plugins and the open calls
reload [PLUGIN]                          start new processes, which replace the old ones when they are ready
attach PLUGIN                            show how to start a process in a debugger, which replaces the old one
wait                                     read no further command until all calls have ended and all plugins have started
help                                     show this list
quit                                     cancel all calls, stop all plugins, and exit
At the end of the input, open calls are waited for.";

/// The longest line.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// A blank line or a comment.
    Nothing,
    Call {
        plugin: String,
        method: String,
        /// `Null` if there are none.
        params: Value,
        timeout: Option<Duration>,
    },
    Cancel(u64),
    List,
    Attach(String),
    /// Of one plugin, or of all.
    Reload(Option<String>),
    Wait,
    Help,
    Quit,
}

impl Command {
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let mut words = line.split_whitespace();
        let command = match words.next() {
            None => Self::Nothing,
            Some(word) if word.starts_with('#') => return Ok(Self::Nothing),
            Some("call") => return parse_call(line),
            Some("cancel") => {
                let number = words.next().ok_or("usage: cancel NUMBER")?;
                Self::Cancel(number.parse().map_err(|_| format!("{number} is not the number of a call"))?)
            }
            Some("list") => Self::List,
            Some("reload") => Self::Reload(words.next().map(str::to_owned)),
            Some("attach") => Self::Attach(words.next().ok_or("usage: attach PLUGIN")?.to_owned()),
            Some("wait") => Self::Wait,
            Some("help" | "?") => Self::Help,
            Some("quit" | "exit") => Self::Quit,
            Some(word) => return Err(format!("unknown command {word}; `help` lists the commands")),
        };
        end_of(words).map(|()| command)
    }
}

fn end_of(mut words: SplitWhitespace<'_>) -> Result<(), String> {
    words.next().map_or(Ok(()), |word| Err(format!("unexpected {word}; `help` lists the commands")))
}

fn parse_call(line: &str) -> Result<Command, String> {
    const USAGE: &str = "usage: call PLUGIN METHOD [JSON] [within TIME]";
    let (_call, rest) = next_word(line);
    let (plugin, rest) = next_word(rest);
    let (method, mut rest) = next_word(rest);
    if method.is_empty() {
        return Err(USAGE.into());
    }
    let mut params = Value::Null;
    if !rest.is_empty() && next_word(rest).0 != "within" {
        // What follows the JSON is the timeout.
        let mut values = serde_json::Deserializer::from_str(rest).into_iter();
        params = values.next().unwrap_or(Ok(Value::Null)).map_err(|error| format!("invalid JSON: {error}"))?;
        if !params.is_array() && !params.is_object() {
            return Err(format!("parameters are an array or an object, such as [{params}]"));
        }
        rest = rest.get(values.byte_offset()..).unwrap_or_default();
    }
    let mut words = rest.split_whitespace();
    let timeout = match words.next() {
        None => None,
        Some("within") => {
            let time = words.next().ok_or(USAGE)?;
            Some(humantime::parse_duration(time).map_err(|_| format!("{time} is not a time such as 5s or 200ms"))?)
        }
        Some(word) => return Err(format!("unexpected {word} after the parameters; {USAGE}")),
    };
    end_of(words)?;
    Ok(Command::Call { plugin: plugin.into(), method: method.into(), params, timeout })
}

/// The first word, and what follows it.
fn next_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

/// Reads standard input on a thread of its own. The channel is closed at the end.
pub(crate) fn read_lines() -> io::Result<Receiver<Result<String, String>>> {
    let (sender, lines) = crossbeam_channel::bounded(0);
    thread::Builder::new().name("prompt".into()).spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(line) = read_line(&mut input) {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}

/// A line, or why it is not one; `None` at the end.
fn read_line(input: &mut impl BufRead) -> Option<Result<String, String>> {
    let mut line = Vec::new();
    match input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
        Ok(0) => return None,
        Ok(_) => {}
        Err(error) => return Some(Err(format!("standard input: {error}"))),
    }
    if line.last() != Some(&b'\n') && line.len() as u64 == LINE_BYTES_MAX {
        let skipped = input.skip_until(b'\n').map(|_| "a command has at most 1 MiB".to_owned());
        return Some(Err(skipped.unwrap_or_else(|error| error.to_string())));
    }
    Some(String::from_utf8(line).map_err(|_| "a command is UTF-8 text".into()))
}
