//! Words of the CNI specification: versions, verbs, error codes and the error result.
//! Not here: how a request is read (see [`crate::invocation`] and [`crate::config`]).

use std::{fmt, str::FromStr};

use serde_json::{Value, json};

/// A version of the specification that the plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// One address of each family, and no interfaces.
    V0_1_0,
    /// VERSION.
    V0_2_0,
    /// Interfaces and addresses in one result for the first time.
    V0_3_0,
    /// Wording only.
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// Addresses lose their `version` field.
    V1_0_0,
    /// GC, STATUS, MTU of interfaces.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];
    /// What an answer is written in when the request does not say, or says it unreadably.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version as the specification writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether `verb` exists in this version.
    #[must_use]
    pub fn has(self, verb: Verb) -> bool {
        match verb {
            Verb::Add | Verb::Del | Verb::Version => true,
            Verb::Check => self >= Self::V0_4_0,
            Verb::Gc | Verb::Status => self >= Self::V1_1_0,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Version {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        if let Some(version) = Self::ALL.into_iter().find(|version| version.as_str() == text) {
            return Ok(version);
        }
        let numbers: Vec<_> = text.split('.').map(str::parse::<u16>).collect();
        if numbers.len() != 3 || numbers.iter().any(Result::is_err) {
            return Err(Failure::new(Code::Decode, "the version of the request is unreadable")
                .details(format!("cniVersion is `{}`", shorten(text))));
        }
        let known = Self::ALL.map(Self::as_str).join(", ");
        Err(Failure::new(Code::Version, "this version of CNI is not spoken here")
            .details(format!("cniVersion is {text}, the plugin speaks {known}")))
    }
}

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Disconnect it; asked as often as the runtime likes.
    Del,
    /// Is it still connected as it was told?
    Check,
    /// Forget every attachment that is not in the list.
    Gc,
    /// Could an ADD succeed now?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The verb as `CNI_COMMAND` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// Error codes: those of the specification, and some of our own (from 100 on they are free).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The specification's version is not spoken, or has no such verb.
    Version,
    /// The container is not known.
    UnknownContainer,
    /// An environment variable is missing or wrong.
    Environment,
    /// Reading or writing failed.
    Io,
    /// The input is not what it should be at all.
    Decode,
    /// The network configuration is wrong.
    Config,
    /// It will pass; the runtime should try again.
    TryAgain,
    /// STATUS: no ADD can succeed now.
    Unavailable,
    /// The kernel refused to connect the container.
    Wiring,
    /// CHECK: the container is not connected as it was told.
    Broken,
    /// A host port that the container wants leads to another one.
    HostPort,
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::Wiring => 100,
            Self::Broken => 101,
            Self::HostPort => 102,
        }
    }
}

/// The specification's error result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Failure {
    /// Which kind; a number because the agent may know codes that this plugin does not.
    pub code: u32,
    /// What is wrong, in one sentence.
    pub message: String,
    /// With what, and how it can be mended.
    pub details: String,
}

impl Failure {
    /// A failure without details.
    #[must_use]
    pub fn new(code: Code, message: &str) -> Self {
        Self { code: code.number(), message: message.to_owned(), details: String::new() }
    }

    /// The same failure with these details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The error result as text, in `version`'s words (which are the same in all).
    #[must_use]
    pub fn render(&self, version: &str) -> String {
        let value: Value = json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        });
        format!("{value}\n")
    }
}

/// The beginning of `text`, for messages: hostile input should not fill a log.
#[must_use]
pub fn shorten(text: &str) -> String {
    const LIMIT: usize = 100;
    if text.chars().nth(LIMIT).is_none() {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain("…".chars()).collect()
}
