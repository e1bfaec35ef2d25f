//! The only road to the terminal: data on stdout, talk on stderr.
#![expect(clippy::print_stderr, reason = "this is the one place that prints")]

use std::{
    io::{ErrorKind, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; may change
    Table,
    /// For programs; has a `version` that changes with its form
    Json,
    /// The same as JSON, in YAML
    Yaml,
}

/// Prints data as it is. Where nobody reads any more (`aksnet top | head`), the program ends as others do then.
#[expect(clippy::exit, reason = "who would be told has gone, or cannot be")]
pub(crate) fn data(text: &str) {
    /// 128 and the number of SIGPIPE, as shells tell it.
    const UNREAD: i32 = 141;
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(UNREAD),
        Err(error) => {
            eprintln!("error: the answer cannot be written: {error}");
            std::process::exit(1);
        }
    }
}

/// Says something to the person.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Prints `value` in `format`; `table` draws it for people.
pub(crate) fn show<T: Serialize>(
    value: &T,
    format: Format,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => data(table(value).trim_end()),
        Format::Json => data(&serde_json::to_string_pretty(value)?),
        Format::Yaml => data(serde_saphyr::to_string(value)?.trim_end()),
    }
    Ok(())
}

/// A table without lines, as kubectl draws it.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    // Every line begins with the padding of its first cell.
    let lines: Vec<&str> =
        text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

/// Shows that something takes time: a line that moves on a terminal, a line every ten seconds elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    began: std::time::Instant,
    told: u64,
}

impl Progress {
    /// Begins.
    pub(crate) fn new(what: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            bar.set_style(style.expect("the template is correct"));
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, what: what.to_owned(), began: std::time::Instant::now(), told: 0 }
    }

    /// Says how far it is.
    pub(crate) fn tell(&mut self, how_far: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {how_far}", self.what));
        } else {
            let seconds = self.began.elapsed().as_secs();
            if seconds / 10 > self.told {
                self.told = seconds / 10;
                say(&format!("    … {}: {how_far} ({seconds} s)", self.what));
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
