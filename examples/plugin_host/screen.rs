//! Output. Results go to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};

const PROMPT: &str = "> ";

#[derive(Debug)]
pub(crate) struct Screen {
    /// The commands are typed in a terminal.
    is_interactive: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { is_interactive: io::stdin().is_terminal() && io::stderr().is_terminal() }
    }

    /// Writes lines to standard output.
    pub(crate) fn result(&self, text: &str) {
        self.clear_prompt();
        write(io::stdout(), &format!("{text}\n"));
        self.prompt();
    }

    /// Writes lines to standard error.
    pub(crate) fn note(&self, text: &str) {
        self.clear_prompt();
        write(io::stderr(), &format!("{text}\n"));
        self.prompt();
    }

    pub(crate) fn prompt(&self) {
        self.clear_prompt();
        if self.is_interactive {
            write(io::stderr(), PROMPT);
        }
    }

    /// What was typed since the prompt stays in the terminal's buffer.
    fn clear_prompt(&self) {
        if self.is_interactive {
            write(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A reader that is gone is no reason to stop: `print!` would panic.
pub(crate) fn write(mut stream: impl Write, text: &str) {
    drop(stream.write_all(text.as_bytes()).and_then(|()| stream.flush()));
}
