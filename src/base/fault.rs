//! Errors as a person meets them: a stable code, what happened, and what to do.
//!
//! Each room has an enum of its own that implements [`Explain`]; at the seams between rooms the
//! enum becomes a [`Fault`], which keeps the code, the sentence and the hint. The code is the same
//! in logs, in `status --json` and in the documentation.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize};

/// What kind of failure this is; decides the exit status (the numbers are those of `sysexits.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The work was tried and failed: exit status 1.
    Failed,
    /// The command line is off: exit status 64.
    Usage,
    /// The configuration is bad: exit status 65.
    Config,
    /// Something that is needed is not there: exit status 69.
    Unavailable,
    /// A privilege is missing: exit status 77.
    Privilege,
}

impl Class {
    /// The process exit status of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Failed => 1,
            Class::Usage => 64,
            Class::Config => 65,
            Class::Unavailable => 69,
            Class::Privilege => 77,
        }
    }
}

/// Where in a file something is wrong. Lines and columns count from 1; 0 means the whole file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The file, as a person would open it (with the `--root` prefix).
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Place {
    /// The whole of `file`.
    pub fn whole(file: &Path) -> Self {
        Place { file: file.to_owned(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// What every error of the house can tell beside its sentence (its `Display`).
pub trait Explain: std::error::Error {
    /// The stable code, such as `ENM-R012`.
    fn code(&self) -> &'static str;
    /// What to do about it, as a sentence.
    fn hint(&self) -> String;
    /// The class, and with it the exit status.
    fn class(&self) -> Class {
        Class::Failed
    }
    /// Where in a file, if in one.
    fn place(&self) -> Option<Place> {
        None
    }
}

/// A stable code, such as `ENM-R012`.
pub type Code = &'static str;

/// An error at the seam between rooms: everything a person or a program needs, nothing of its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The stable code.
    #[serde(deserialize_with = "interned")]
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// What kind of failure.
    pub class: Class,
    /// Where in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The service it concerns, where it is one service's matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl Fault {
    /// The same fault, said of one service.
    #[must_use]
    pub fn of_service(mut self, service: impl fmt::Display) -> Self {
        self.service = Some(service.to_string());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl<E: Explain> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault {
            code: error.code(),
            message: sentence(&error),
            hint: error.hint(),
            class: error.class(),
            place: error.place(),
            service: None,
        }
    }
}

/// A code that came over the control socket. Each is kept once, for ever: there are a few hundred.
fn interned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let code = String::deserialize(deserializer)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.get(code.as_str()) {
        return Ok(known);
    }
    let code: &'static str = code.leak();
    known.insert(code);
    Ok(code)
}

/// The error's sentence with those of its causes, unless they were said already.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
