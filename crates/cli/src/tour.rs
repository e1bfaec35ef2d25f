//! `aksnet tour`: plays the article, command by command, and compares every answer with what the article prints.

mod article;

use std::{
    io::{BufRead, Write},
    process::{Command as Process, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

use self::article::{Command, Expect, Step, steps};
use crate::{
    azure_env,
    control::{Answer, Ask, ask},
    lab::{Config, Lab, Nodes},
    output::{Progress, data, say},
    run,
};

/// How long a command that is asked again may take to say what is expected.
const PATIENCE: Duration = Duration::from_mins(3);

/// How a tour went.
#[derive(Debug, Default)]
struct Score {
    right: usize,
    wrong: Vec<String>,
    corrected: Vec<String>,
}

/// What a command printed.
struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

/// Plays the tour; with `pause`, waits for Enter before each command. Answers whether everything was as expected.
pub(crate) fn play(lab: &Lab, config: &Config, pause: bool) -> anyhow::Result<bool> {
    azure_env::prepare_az(lab, config)?;
    let began = Instant::now();
    let tour = Tour { lab, config, pause };
    let mut score = Score::default();
    for step in steps() {
        tour.step(&step, &mut score)?;
    }
    say("");
    for text in &score.corrected {
        say(&format!("the article, corrected: {text}"));
    }
    for text in &score.wrong {
        say(&format!("not as expected: {text}"));
    }
    say(&format!(
        "{} of {} as the article has it, in {} s",
        score.right,
        score.right + score.wrong.len(),
        began.elapsed().as_secs()
    ));
    Ok(score.wrong.is_empty())
}

struct Tour<'a> {
    lab: &'a Lab,
    config: &'a Config,
    pause: bool,
}

impl Tour<'_> {
    fn step(&self, step: &Step, score: &mut Score) -> anyhow::Result<()> {
        let (what, verdict) = match step {
            Step::Heading(text) => {
                data(&format!("\n== {text}"));
                return Ok(());
            }
            Step::Say(text) => {
                data(&format!("\n# {text}"));
                return Ok(());
            }
            Step::SurgeFormula => {
                surge_formula(score);
                return Ok(());
            }
            _ if self.simulated_cannot(step) => {
                data("# left out: the nodes of this lab are simulated");
                return Ok(());
            }
            Step::Run(command) => (command.line.to_owned(), self.command(command, score)?),
            Step::Apply { file, manifest, cluster } => {
                let line = format!("k apply -f {file}");
                self.ask_to_go_on(&line)?;
                let mut output =
                    self.shell(&kubectl("k apply -f -", cluster), Some(manifest), "")?;
                output.stdout = output.stdout.trim_end().to_owned();
                data(&output.stdout);
                (line, if output.success { Ok(()) } else { Err(output.stderr) })
            }
            Step::Curl { vm, vnet, subnet, cluster, namespace, service, contains } => {
                let verdict =
                    self.curl(vm, vnet, subnet, (cluster, namespace, service), contains)?;
                (format!("curl from {vm}"), verdict)
            }
        };
        match verdict {
            Ok(()) => {
                score.right += 1;
                data("  ✓ as in the article");
            }
            Err(why) => {
                data(&format!("  ✗ {why}"));
                score.wrong.push(format!("`{}`: {why}", what.trim()));
            }
        }
        Ok(())
    }

    /// Commands that need a real cluster.
    fn simulated_cannot(&self, step: &Step) -> bool {
        let needs = match step {
            Step::Run(command) => {
                command.cluster.is_some()
                    || command.line.contains("get-credentials")
                    || command.line.contains("route-table list")
            }
            Step::Apply { .. } | Step::Curl { .. } => true,
            Step::Heading(_) | Step::Say(_) | Step::SurgeFormula => false,
        };
        needs && self.config.nodes == Nodes::Simulated
    }

    fn ask_to_go_on(&self, line: &str) -> anyhow::Result<()> {
        data(&format!("\n$ {}", line.trim_end()));
        if self.pause {
            std::io::stderr().write_all("  (Enter)".as_bytes())?;
            std::io::stdin().lock().read_line(&mut String::new())?;
        }
        Ok(())
    }

    fn command(&self, command: &Command, score: &mut Score) -> anyhow::Result<Result<(), String>> {
        self.ask_to_go_on(command.line)?;
        let mut line = command.line.trim_end().to_owned();
        if let Some((repaired, why)) = &command.repaired {
            data(&format!("# {why}\n# so instead:\n$ {repaired}"));
            score.corrected.push((*why).to_owned());
            line.clone_from(repaired);
        }
        if let Some(show) = command.unless
            && let Some(done) = self.already_there(show)?
        {
            data("# it is there from an earlier run");
            let wrapped = match &command.expect {
                Expect::Prints(expected) if expected.get("newVNet").is_some() => return Ok(Ok(())),
                _ => done,
            };
            show_parts(&wrapped, command.shown);
            // What has been used since may have more than what was printed on creation.
            return Ok(match &command.expect {
                Expect::Has(parts) => has(&wrapped, parts),
                _ => Ok(()),
            });
        }
        if let Some(cluster) = command.cluster {
            line = kubectl(&line, cluster);
        }
        let began = Instant::now();
        loop {
            let output = self.shell(&line, None, command.line)?;
            let verdict = judge(&command.expect, &output);
            let again = matches!(command.expect, Expect::Eventually(_)) && verdict.is_err();
            if again && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(500));
                continue;
            }
            let text = if output.success { &output.stdout } else { &output.stderr };
            match serde_json::from_str::<Value>(text) {
                Ok(value) if !command.shown.is_empty() => show_parts(&value, command.shown),
                _ => data(text.trim_end()),
            }
            return Ok(verdict);
        }
    }

    /// What `show` prints, once it says `Succeeded`; `None` when there is nothing of the kind.
    fn already_there(&self, show: &str) -> anyhow::Result<Option<Value>> {
        let began = Instant::now();
        loop {
            let output = self.shell(show, None, show)?;
            if !output.success {
                return Ok(None);
            }
            let value: Value =
                serde_json::from_str(&output.stdout).context("az printed no JSON")?;
            match value["provisioningState"].as_str() {
                Some("Succeeded") => return Ok(Some(value)),
                Some("Failed") => {
                    bail!("`{show}` says that it has failed; `az … delete` it and play again")
                }
                _ if began.elapsed() > PATIENCE => bail!("`{show}` did not say Succeeded in time"),
                _ => std::thread::sleep(Duration::from_secs(1)),
            }
        }
    }

    fn curl(
        &self,
        vm: &str,
        vnet: &str,
        subnet: &str,
        (cluster, namespace, service): (&str, &str, &str),
        contains: &str,
    ) -> anyhow::Result<Result<(), String>> {
        let own = run::own_program()?;
        let own = format!("'{}' --name {}", own.display(), self.lab.name());
        let make = format!("aksnet vm create {vm} -g aksntwdemo --vnet {vnet} --subnet {subnet}");
        self.ask_to_go_on(&make)?;
        let output = self.shell(&make.replacen("aksnet", &own, 1), None, &make)?;
        data(output.stdout.trim_end());
        if !output.success {
            return Ok(Err(output.stderr));
        }
        let jsonpath = "-o jsonpath='{.status.loadBalancer.ingress[0].ip}'";
        let line = kubectl(&format!("k get svc -n {namespace} {service} {jsonpath}"), cluster);
        let address = self.shell(&line, None, "")?.stdout;
        let line = format!("aksnet exec {vm} -- curl -s --max-time 5 http://{address}/");
        self.ask_to_go_on(&line)?;
        let began = Instant::now();
        loop {
            let output = self.shell(&line.replacen("aksnet", &own, 1), None, &line)?;
            if output.stdout.contains(contains) {
                let title = output.stdout.lines().find(|line| line.contains(contains));
                data(&format!("…\n{}\n…", title.unwrap_or_default()));
                return Ok(Ok(()));
            }
            if began.elapsed() > PATIENCE / 3 {
                return Ok(Err(format!(
                    "no `{contains}` from {address}: {}",
                    output.stderr.trim()
                )));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Runs a line in a shell, in the lab's environment, showing that time passes.
    fn shell(&self, line: &str, input: Option<&str>, shown: &str) -> anyhow::Result<Output> {
        let mut child = Process::new("bash")
            .args(["-o", "pipefail", "-c", line])
            .envs(azure_env::variables(self.lab, self.config))
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting bash")?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).context("writing to kubectl")?;
        }
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let words: Vec<&str> = shown.split_whitespace().take(4).collect();
        let mut progress: Option<Progress> = None;
        let output = loop {
            match done.recv_timeout(Duration::from_secs(1)) {
                Ok(output) => break output.context("waiting for a command")?,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let progress = progress.get_or_insert_with(|| Progress::new(&words.join(" ")));
                    progress.tell(&self.how_far());
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("a command was lost"),
            }
        };
        drop(progress);
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `aks-ntwdemo10 Creating, 2 of 3 nodes Ready`.
    fn how_far(&self) -> String {
        let Ok(Answer::Status(status)) = ask(self.lab, &Ask::Status) else {
            return "waiting".to_owned();
        };
        let busy = status.clusters.iter().find(|cluster| cluster.state != "Succeeded");
        busy.map_or("waiting".to_owned(), |cluster| {
            let ready = cluster.nodes.iter().filter(|node| node.phase == "Ready").count();
            format!(
                "{} {}, {ready} of {} nodes Ready",
                cluster.name,
                cluster.state,
                cluster.nodes.len()
            )
        })
    }
}

/// `k …` of the article, for one cluster.
fn kubectl(line: &str, cluster: &str) -> String {
    line.replacen("k ", &format!("kubectl --context {cluster} "), 1)
}

/// The article's example by the article's own formula, with the numbers that come out of it.
fn surge_formula(score: &mut Score) {
    let surge = vnet::sizing::surge_nodes("33%", 9).unwrap_or_default();
    let total = u64::from(9 + surge) * (1 + 30);
    data(&format!(
        "\n# 9 nodes of 30 pods, max surge 33 %: {surge} nodes more while upgrading\n\
         # (9+{surge}) + (9+{surge})*30 = {total}\n\
         # The article prints 279, which is 9 + 9*30: no surge at all. It is {total}."
    ));
    if total == 372 {
        score.right += 1;
        score.corrected.push("(9+3) + (9+3)*30 is 372, not 279".to_owned());
        data("  ✓ 279 in the article is 372");
    } else {
        score.wrong.push(format!("(9+3)+(9+3)*30 came out as {total}"));
    }
}

fn show_parts(value: &Value, pointers: &[&str]) {
    for pointer in pointers {
        let part = value.pointer(pointer).unwrap_or(&Value::Null);
        data(&format!("  {:<36} {part}", pointer.trim_start_matches('/').replace('/', ".")));
    }
}

fn judge(expect: &Expect, output: &Output) -> Result<(), String> {
    let succeeded = || {
        if output.success { Ok(()) } else { Err(output.stderr.trim().to_owned()) }
    };
    let json = || {
        succeeded()?;
        serde_json::from_str::<Value>(&output.stdout)
            .map_err(|_| "the answer is no JSON".to_owned())
    };
    match expect {
        Expect::Refused(text) if output.success => Err(format!("was to be refused with `{text}`")),
        Expect::Refused(text) if output.stderr.contains(text) => Ok(()),
        Expect::Refused(text) => Err(format!("was to be refused with `{text}`: {}", output.stderr)),
        Expect::Prints(expected) => same(&json()?, expected, ""),
        Expect::Has(parts) => has(&json()?, parts),
        Expect::Eventually(words) => {
            succeeded()?;
            match words.iter().find(|word| !output.stdout.contains(**word)) {
                None => Ok(()),
                Some(word) => Err(format!("does not say `{word}`")),
            }
        }
        Expect::Succeeds => succeeded(),
    }
}

fn has(value: &Value, parts: &[(&str, Value)]) -> Result<(), String> {
    for (pointer, expected) in parts {
        let part = value.pointer(pointer).unwrap_or(&Value::Null);
        if part != expected {
            return Err(format!("{pointer} is {part}, not {expected}"));
        }
    }
    Ok(())
}

/// Whether the answer has exactly the article's keys and values. Where the article's value is empty here, it
/// is an id, etag or GUID, of which only the presence is compared.
fn same(value: &Value, expected: &Value, path: &str) -> Result<(), String> {
    match (value, expected) {
        (Value::Object(value), Value::Object(expected)) => {
            for key in value.keys() {
                if !expected.contains_key(key) {
                    return Err(format!("{path}/{key} is not in the article's answer"));
                }
            }
            for (key, expected) in expected {
                let value = value.get(key).ok_or_else(|| format!("{path}/{key} is missing"))?;
                same(value, expected, &format!("{path}/{key}"))?;
            }
            Ok(())
        }
        (Value::Array(value), Value::Array(expected)) if value.len() == expected.len() => {
            let mut pairs = value.iter().zip(expected).enumerate();
            pairs.try_for_each(|(index, (value, expected))| {
                same(value, expected, &format!("{path}/{index}"))
            })
        }
        (Value::String(value), Value::String(expected)) if expected.is_empty() => {
            if value.is_empty() { Err(format!("{path} is empty")) } else { Ok(()) }
        }
        (value, expected) if value == expected => Ok(()),
        (value, expected) => Err(format!("{path} is {value}, not {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_compared_key_by_key() {
        let expected = json!({ "name": "a", "etag": "", "list": [1, 2] });
        let check = |value: Value| same(&value, &expected, "").err().unwrap_or_default();
        assert_eq!(check(json!({ "name": "a", "etag": "W/1", "list": [1, 2] })), "");
        assert_eq!(
            check(json!({ "name": "b", "etag": "W/1", "list": [1, 2] })),
            "/name is \"b\", not \"a\""
        );
        assert_eq!(check(json!({ "name": "a", "list": [1, 2] })), "/etag is missing");
        assert_eq!(check(json!({ "name": "a", "etag": "", "list": [1, 2] })), "/etag is empty");
        assert_eq!(
            check(json!({ "name": "a", "etag": "x", "list": [1] })),
            "/list is [1], not [1,2]"
        );
        assert_eq!(
            check(json!({ "name": "a", "etag": "x", "list": [1, 2], "more": 1 })),
            "/more is not in the article's answer"
        );
    }

    #[test]
    fn kubectl_is_the_articles_k() {
        assert_eq!(kubectl("k get no", "c"), "kubectl --context c get no");
    }
}
