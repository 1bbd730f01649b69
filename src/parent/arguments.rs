//! The pipes that the command line and the environment name.

use super::{
    control::{ConnectError, ControlClient},
    error::ParentError,
    messages::MessageOutput,
};
use crate::wire::jsonrpc::{address::Address, hello::AcceptedHello};
use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::Arc,
};

/// The environment variable that is 1 in a worker that is tried by hand.
const STANDALONE_VARIABLE: &str = "PIPEWRIGHT_STANDALONE";

/// The value of an argument or of an environment variable.
#[derive(Debug, PartialEq)]
pub(super) struct Setting {
    /// Its name, with `=`.
    prefix: String,
    value: OsString,
}

impl Setting {
    /// The first argument of this name. `args` are those behind the program's name.
    pub(super) fn argument(mut args: impl Iterator<Item = OsString>, name: &str) -> Option<Self> {
        let found = |value: &OsStr| Some(Self { prefix: format!("{name}="), value: value.to_owned() });
        while let Some(arg) = args.next() {
            if arg == "--" {
                return None;
            }
            if arg == name {
                // A last argument without a value has an empty one, which the error shows.
                return found(&args.next().unwrap_or_default());
            }
            let value = arg.as_bytes().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
            if let Some(value) = value {
                return found(OsStr::from_bytes(value));
            }
        }
        None
    }

    pub(super) fn variable(name: &str) -> Option<Self> {
        env::var_os(name).map(|value| Self { prefix: format!("{name}="), value })
    }

    /// Takes the pipe for messages whose number this is.
    pub(super) fn open(self) -> Result<MessageOutput, ParentError> {
        let text = self.value.to_string_lossy();
        let given = || format!("`{}{text}`", self.prefix);
        match text.parse() {
            Ok(handle) => MessageOutput::inherit(handle, given),
            Err(source) => Err(ParentError::InvalidHandle { given: given().into(), source }),
        }
    }

    /// Connects to the control pipe at this path, with `key` or else with the key that ends the text, behind a `?`.
    pub(super) fn connect(self, key: Option<&str>) -> Result<(Arc<ControlClient>, AcceptedHello), ParentError> {
        let text = self.value.to_string_lossy();
        let address = match key {
            Some(key) => Address::new(&text, key),
            None => text.parse::<Address>(),
        };
        address.map_err(ConnectError::from).and_then(|address| ControlClient::connect(&address)).map_err(|error| {
            // A text that is not a path may be a key, which must not be shown.
            let path = Some(&*text).filter(|text| text.starts_with('/')).unwrap_or("…");
            let path = path.rsplit_once('?').map_or(path, |(path, _)| path);
            let given = format!("`{}{path}`", self.prefix).into();
            match error {
                ConnectError::Refused(reason) => ParentError::Refused { given, reason: reason.into() },
                ConnectError::Io(source) => ParentError::ControlUnavailable { given, source },
            }
        })
    }
}

/// Whether a person wants to try the worker by hand.
pub(super) fn is_standalone() -> bool {
    env::var_os(STANDALONE_VARIABLE).is_some_and(|value| value == "1")
}

pub(super) fn program_name(first: Option<&OsStr>) -> Box<str> {
    let name = first.map(Path::new).and_then(Path::file_name);
    name.map_or_else(|| "this program".into(), |name| name.to_string_lossy().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = "--messages";

    fn found(args: &[&str]) -> Option<String> {
        Setting::argument(args.iter().map(OsString::from), MESSAGES).map(|found| found.value.into_string().unwrap())
    }

    #[test]
    fn first_argument_of_the_name_counts() {
        assert_eq!(found(&["compile", "--messages=17", "--messages=18"]), Some("17".into()));
        assert_eq!(found(&["--messages", "17"]), Some("17".into()));
        assert_eq!(found(&["--messages"]), Some(String::new()));
        assert_eq!(found(&["--messages="]), Some(String::new()));
        assert_eq!(found(&["--messages-to=3", "messages=4", "--", "--messages=5"]), None);
    }

    #[test]
    fn p16_errors_say_what_to_do() {
        let by_hand = ParentError::NotAWorker { program: program_name(Some(OsStr::new("/usr/bin/compile"))) };
        let text = by_hand.to_string();
        assert!(text.starts_with("compile is a worker: another program starts it and gives it a pipe"), "{text}");
        assert!(text.contains("to try it by hand, set PIPEWRIGHT_STANDALONE=1: ") && !text.contains('\n'), "{text}");
        assert_eq!(&*program_name(None), "this program");
        let bad = |args: &[&str]| {
            Setting::argument(args.iter().map(OsString::from), MESSAGES).unwrap().open().unwrap_err().to_string()
        };
        let text = bad(&["--messages=x"]);
        assert!(text.starts_with("cannot send messages through the handle given as `--messages=x`: "), "{text}");
    }

    #[test]
    fn p12_error_names_the_path_of_a_control_pipe_and_not_its_key() {
        let error = |text: &str, key: Option<&str>| {
            let setting = Setting::argument([OsString::from(text)].into_iter(), "--control").unwrap();
            let error = setting.connect(key).unwrap_err();
            format!("{error} {error:?}")
        };
        // Too long for a socket, so that it fails at once.
        let argument = format!("--control=/{}", "x".repeat(4096));
        for (text, key) in [(format!("{argument}?secret"), None), (argument.clone(), Some("secret"))] {
            let text = error(&text, key);
            assert!(text.contains(&format!("`{argument}`")) && !text.contains("secret"), "{text}");
        }
        let text = error("--control=secret", None);
        assert!(text.contains("--control=") && !text.contains("secret"), "{text}");
    }
}
