//! A refusal, in Azure's terms.

use serde::{Deserialize, Serialize};

/// Why a command was refused or an operation failed: Azure's code, status, target and text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("({code}) {message}")]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Azure's error code, `NetcfgSubnetRangesOverlap`.
    pub code: String,
    /// AKS' finer code, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subcode: Option<Box<str>>,
    /// The HTTP status that Azure answers with, 400 to 599.
    pub status: u16,
    /// The property that is wrong, as a path, where Azure names one.
    pub target: Option<Box<str>>,
    /// The text, as Azure words it.
    pub message: String,
    /// Every finding, when there is more than one.
    #[serde(default)]
    pub details: Vec<Fault>,
}

impl Fault {
    /// A refusal with any status.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            subcode: None,
            status,
            target: None,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// Status 400.
    #[must_use]
    pub fn bad(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    /// Status 409.
    #[must_use]
    pub fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(409, code, message)
    }

    /// The same refusal with AKS' finer code.
    #[must_use]
    pub fn with_subcode(mut self, subcode: &str) -> Self {
        self.subcode = Some(subcode.into());
        self
    }

    /// The same refusal, naming the property that is wrong.
    #[must_use]
    pub fn at(mut self, target: &str) -> Self {
        self.target = Some(target.into());
        self
    }
}
