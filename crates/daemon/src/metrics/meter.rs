//! Sums that outlive what they were read from.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use linux::{
    LinuxError,
    netfilter::{self, RuleCount, Table, Verdict},
    netns::Netns,
};
use vnet::host::{Health, TABLE};

/// The process' own: a daemon runs one lab.
pub static METER: Meter = Meter::new();

/// Counts and sums. What concerns namespaces is found by their names, so that labs do not meet.
#[derive(Debug)]
pub struct Meter(Mutex<Sums>);

#[derive(Debug)]
struct Sums {
    tables: BTreeMap<String, Counted>,
    passes: Passes,
    errors: BTreeMap<String, u64>,
    health: BTreeMap<String, Health>,
    troubles: BTreeMap<String, Trouble>,
}

/// What a loop fails at now, and tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What it failed at the last time, and why.
    pub error: String,
    /// How often, since it last succeeded.
    pub times: u64,
}

/// What a rule is known by over reloads and in both families: chain, comment, and whether it drops.
pub(super) type Key = (String, String, bool);
/// Packets and bytes.
pub(super) type Count = (u64, u64);

/// One namespace's table.
#[derive(Debug, Default)]
struct Counted {
    load: u64,
    last: BTreeMap<Key, Count>,
    /// Of earlier loads.
    before: BTreeMap<Key, Count>,
}

/// The fabric's passes.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Passes {
    /// How many took at most so long, for each of [`Passes::BOUNDS`].
    pub at_most: [u64; Passes::BOUNDS.len()],
    /// How many there were.
    pub count: u64,
    /// How long they took together, in nanoseconds.
    pub nanoseconds: u64,
}

impl Passes {
    /// In milliseconds.
    pub const BOUNDS: [u64; 10] = [1, 2, 5, 10, 25, 50, 100, 250, 1000, 5000];
}

const NEVER_POISONED: &str = "nothing panics while it holds the sums";

impl Meter {
    /// One that has counted nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Sums {
            tables: BTreeMap::new(),
            passes: Passes { at_most: [0; Passes::BOUNDS.len()], count: 0, nanoseconds: 0 },
            errors: BTreeMap::new(),
            health: BTreeMap::new(),
            troubles: BTreeMap::new(),
        }))
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().expect(NEVER_POISONED)
    }

    /// Takes in what the rules of a namespace have counted, and gives the sums.
    pub(super) fn read(&self, namespace: &str) -> Result<BTreeMap<Key, Count>, LinuxError> {
        let table = netfilter::table(&Netns::open(namespace)?, TABLE)?;
        let mut sums = self.sums();
        let counted = sums.tables.entry(namespace.to_owned()).or_default();
        if let Some(table) = table {
            counted.take(&table);
        }
        Ok(counted.sums())
    }

    /// To be called before the rules of a namespace are loaded anew.
    pub fn before_load(&self, namespace: &str) {
        if let Err(error) = self.read(namespace) {
            tracing::warn!(namespace, %error, "counts since the last reading are lost");
        }
    }

    /// Forgets namespaces of a lab that are gone.
    pub(super) fn keep(&self, lab: &str, is_there: impl Fn(&str) -> bool) {
        let prefix = format!("{lab}-");
        self.sums().tables.retain(|name, _| !name.starts_with(&prefix) || is_there(name));
    }

    /// A pass of the fabric took so long.
    pub fn passed(&self, took: Duration) {
        let mut sums = self.sums();
        let passes = &mut sums.passes;
        for (bound, count) in Passes::BOUNDS.iter().zip(&mut passes.at_most) {
            *count += u64::from(took <= Duration::from_millis(*bound));
        }
        passes.count += 1;
        passes.nanoseconds += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    }

    /// The fabric's passes so far.
    pub fn passes(&self) -> Passes {
        self.sums().passes.clone()
    }

    /// A pass of this loop failed.
    pub fn failed(&self, loop_name: &str) {
        *self.sums().errors.entry(loop_name.to_owned()).or_default() += 1;
    }

    /// Who fails at something and will try again; `who` is a loop, or a node.
    pub fn in_trouble(&self, who: &str, error: String) {
        let mut sums = self.sums();
        let times = sums.troubles.get(who).map_or(0, |trouble| trouble.times) + 1;
        sums.troubles.insert(who.to_owned(), Trouble { error, times });
    }

    /// The opposite, also when it was never in trouble.
    pub fn out_of_trouble(&self, who: &str) {
        self.sums().troubles.remove(who);
    }

    /// Who is in trouble now.
    pub fn troubles(&self) -> BTreeMap<String, Trouble> {
        self.sums().troubles.clone()
    }

    /// Failed passes by loop.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.sums().errors.clone()
    }

    /// Who answers probes in a lab, as the fabric has it.
    pub fn set_health(&self, lab: &str, health: &Health) {
        let mut sums = self.sums();
        if sums.health.get(lab) != Some(health) {
            sums.health.insert(lab.to_owned(), health.clone());
        }
    }

    /// Who answers probes in a lab; nobody until the fabric's first pass.
    pub fn health(&self, lab: &str) -> Health {
        self.sums().health.get(lab).cloned().unwrap_or_default()
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Counted {
    fn take(&mut self, table: &Table) {
        if self.load != table.load {
            for (key, count) in std::mem::take(&mut self.last) {
                add(&mut self.before, key, count);
            }
            self.load = table.load;
        }
        self.last.clear();
        for rule in &table.rules {
            add(&mut self.last, key(rule), (rule.packets, rule.bytes));
        }
    }

    fn sums(&self) -> BTreeMap<Key, Count> {
        let mut sums = self.last.clone();
        for (key, count) in &self.before {
            add(&mut sums, key.clone(), *count);
        }
        sums
    }
}

fn key(rule: &RuleCount) -> Key {
    let comment = rule.comment.clone().unwrap_or_default();
    (rule.chain.clone(), comment, rule.verdict == Some(Verdict::Drop))
}

fn add(sums: &mut BTreeMap<Key, Count>, key: Key, (packets, bytes): Count) {
    let sum = sums.entry(key).or_default();
    *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(bytes));
}

#[cfg(test)]
mod tests {
    use vnet::addr::Family;

    use super::*;

    fn table(load: u64, counts: &[(&str, u64)]) -> Table {
        let rule = |(n, (name, packets)): (u64, &(&str, u64))| RuleCount {
            family: Family::V4,
            handle: n,
            chain: "gate".to_owned(),
            comment: Some((*name).to_owned()),
            verdict: Some(Verdict::Drop),
            packets: *packets,
            bytes: packets * 100,
        };
        Table { load, rules: (1..).zip(counts).map(rule).collect() }
    }

    #[test]
    fn sums_outlive_reloads_and_rules_that_went() {
        let mut counted = Counted::default();
        let packets = |counted: &Counted| {
            let sums = counted.sums();
            sums.into_iter().map(|((_, name, _), (n, _))| (name, n)).collect::<Vec<_>>()
        };
        let told = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<Vec<_>>()
        };
        counted.take(&table(1, &[("a", 5), ("b", 1), ("a", 2)]));
        assert_eq!(packets(&counted), told(&[("a", 7), ("b", 1)]), "two rules of one name are one");
        counted.take(&table(1, &[("a", 6), ("b", 1), ("a", 2)]));
        assert_eq!(packets(&counted), told(&[("a", 8), ("b", 1)]), "read twice is counted once");
        counted.take(&table(2, &[("a", 1)]));
        assert_eq!(packets(&counted), told(&[("a", 9), ("b", 1)]));
        counted.take(&table(3, &[("a", 0), ("c", 4)]));
        assert_eq!(packets(&counted), told(&[("a", 9), ("b", 1), ("c", 4)]));
    }

    #[test]
    fn passes_fall_into_all_buckets_that_hold_them() {
        let meter = Meter::new();
        meter.passed(Duration::from_millis(1));
        meter.passed(Duration::from_millis(30));
        meter.passed(Duration::from_mins(1));
        let passes = meter.passes();
        assert_eq!(passes.at_most, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
        assert_eq!((passes.count, passes.nanoseconds), (3, 60_031_000_000));
    }
}
