//! The plugin as a function: environment and stdin in, stdout and success out.
//!
//! # Guarantees
//! - A request that is refused has changed nothing.
//! - Whatever happens, stdout holds exactly one JSON object, or nothing where the specification has
//!   no answer.
//! - DEL succeeds while the agent is down: the release waits in [`crate::queue`].
//!
//! # Caveats
//! A DEL that the agent did not answer may have been done; it is queued as well. The agent does it
//! a second time, which changes nothing.

use std::{error::Error, io::Read, time::Duration};

use crate::{
    answer,
    config::{self, NetworkConfig},
    invocation::{self, Environment},
    queue,
    spec::{Code, Failure, Verb, Version},
    talk::{self, Reply, Request, TalkError},
};

/// How long the agent may take. The kubelet gives the runtime two minutes for a sandbox.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a DEL waits before it goes into the queue instead.
const DEL_PATIENCE: Duration = Duration::from_secs(5);

/// What the program prints, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// All of stdout.
    pub stdout: String,
    /// Exit code 0?
    pub success: bool,
}

/// Answers one request of a container runtime.
pub fn run(environment: &Environment<'_>, input: &mut dyn Read) -> Outcome {
    let mut version = None;
    match answer(environment, input, &mut version) {
        Ok(stdout) => Outcome { stdout, success: true },
        Err(failure) => {
            let version = version.unwrap_or_else(|| Version::NEWEST.to_string());
            Outcome { stdout: failure.render(&version), success: false }
        }
    }
}

fn answer(
    environment: &Environment<'_>,
    input: &mut dyn Read,
    version: &mut Option<String>,
) -> Result<String, Failure> {
    let verb = invocation::parse_verb(environment)?;
    let input = config::read_input(input)?;
    *version = config::version_text(&input);
    if verb == Verb::Version {
        return Ok(answer::render_versions(version.as_deref()));
    }
    let config = config::parse(&input)?;
    if !config.version.has(verb) {
        return Err(Failure::new(Code::Version, "this version of CNI has no such command")
            .details(answer::lacks(config.version, verb)));
    }
    match verb {
        Verb::Add => add(environment, &config),
        Verb::Del => del(environment, &config),
        Verb::Check => check(environment, &config),
        Verb::Gc => gc(&config),
        Verb::Status => status(&config),
        Verb::Version => Ok(answer::render_versions(Some(config.version.as_str()))),
    }
}

fn add(environment: &Environment<'_>, config: &NetworkConfig) -> Result<String, Failure> {
    let call = invocation::parse_attachment(environment, Verb::Add)?;
    let netns = call.netns.unwrap_or_default();
    if config.is_delegated {
        let (attachment, pod) = (call.attachment, call.pod);
        return match ask(config, Request::Reserve { attachment, netns, pod })? {
            Reply::Added(added) => Ok(answer::render_reserved(config, &added)),
            other => Err(unexpected(&other)),
        };
    }
    let request = Request::Add {
        attachment: call.attachment,
        netns: netns.clone(),
        pod: call.pod,
        ports: config.ports.clone(),
        bandwidth: config.bandwidth,
    };
    match ask(config, request)? {
        Reply::Added(added) => Ok(answer::render_added(config, &netns, &added)),
        other => Err(unexpected(&other)),
    }
}

fn check(environment: &Environment<'_>, config: &NetworkConfig) -> Result<String, Failure> {
    let call = invocation::parse_attachment(environment, Verb::Check)?;
    let previous = config.previous.as_ref().ok_or_else(|| {
        Failure::new(Code::Config, "CHECK needs the result of ADD").details("prevResult is missing")
    })?;
    let addresses = answer::addresses_of(previous, &call.attachment.interface);
    if addresses.is_empty() {
        return Err(Failure::new(Code::Config, "CHECK needs the result of ADD").details(format!(
            "prevResult has no address on `{}` in the container",
            call.attachment.interface
        )));
    }
    let (attachment, netns) = (call.attachment, call.netns.unwrap_or_default());
    done(ask(config, Request::Check { attachment, netns, addresses })?)
}

fn del(environment: &Environment<'_>, config: &NetworkConfig) -> Result<String, Failure> {
    let attachment = invocation::parse_attachment(environment, Verb::Del)?.attachment;
    let request = Request::Del { attachment: attachment.clone() };
    match talk::ask(&config.socket, request, DEL_PATIENCE) {
        Ok(reply) => done(refused(reply)?),
        Err(TalkError::Down { .. } | TalkError::Silent { .. }) => {
            let directory = queue::directory(&config.socket);
            queue::push(&directory, &attachment).map_err(|error| {
                Failure::new(Code::Io, "the release cannot be queued for the agent")
                    .details(format!("{}: {error}", directory.display()))
            })?;
            Ok(String::new())
        }
        Err(error @ TalkError::Unreadable { .. }) => Err(try_again(&error)),
    }
}

fn gc(config: &NetworkConfig) -> Result<String, Failure> {
    // Without the list nothing is known to be stale; an empty list is another thing.
    let Some(keep) = config.valid.clone() else {
        return Err(Failure::new(Code::Config, "GC needs the list of what is still valid")
            .details("cni.dev/valid-attachments is missing"));
    };
    done(ask(config, Request::Gc { keep })?)
}

fn status(config: &NetworkConfig) -> Result<String, Failure> {
    let reply = talk::ask(&config.socket, Request::Status, PATIENCE)
        .map_err(|error| Failure { code: Code::Unavailable.number(), ..try_again(&error) })?;
    done(refused(reply)?)
}

fn ask(config: &NetworkConfig, request: Request) -> Result<Reply, Failure> {
    let reply = talk::ask(&config.socket, request, PATIENCE).map_err(|error| try_again(&error))?;
    refused(reply)
}

fn refused(reply: Reply) -> Result<Reply, Failure> {
    match reply {
        Reply::Failed { code, message, details } => Err(Failure { code, message, details }),
        other @ (Reply::Added(_) | Reply::Done) => Ok(other),
    }
}

fn done(reply: Reply) -> Result<String, Failure> {
    match reply {
        Reply::Done => Ok(String::new()),
        other @ (Reply::Added(_) | Reply::Failed { .. }) => Err(unexpected(&other)),
    }
}

fn try_again(error: &TalkError) -> Failure {
    let mut details = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        details.push_str(": ");
        details.push_str(&cause.to_string());
        source = cause.source();
    }
    Failure::new(Code::TryAgain, "the node's network agent cannot be asked").details(details)
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::new(Code::Decode, "the agent answered something else than was asked")
        .details(crate::spec::shorten(&format!("{reply:?}")))
}
