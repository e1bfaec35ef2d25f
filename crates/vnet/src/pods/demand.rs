//! How many addresses a node of a pod subnet asks for: the pool monitor of Azure's CNS, first
//! version, as AKS ran it in November 2023 (azure-container-networking `cns/ipampool`).

/// The numbers of `NodeNetworkConfig.status.scaler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaler {
    /// Addresses come and go in this many; at least 1.
    pub batch: u32,
    /// Below this share of a batch free, more are asked for; 1 to 100.
    pub request_percent: u32,
    /// From this share of a batch free on, some are given back.
    pub release_percent: u32,
    /// Never more than this many.
    pub max: u32,
}

impl Default for Scaler {
    fn default() -> Self {
        Self { batch: 16, request_percent: 50, release_percent: 150, max: 250 }
    }
}

impl Scaler {
    /// The numbers brought into the bounds that CNS keeps.
    #[must_use]
    pub fn clamped(self) -> Self {
        let max = self.max.max(1);
        let request_percent = self.request_percent.clamp(1, 100);
        Self {
            batch: self.batch.clamp(1, max),
            request_percent,
            release_percent: self.release_percent.max(request_percent + 100),
            max,
        }
    }

    /// The numbers while the subnet is exhausted: one address at a time, and one free (CNS sets
    /// `batch = 1`, `minFree = 1`, `maxFree = 2`).
    #[must_use]
    pub fn exhausted(self) -> Self {
        Self { batch: 1, request_percent: 100, release_percent: 200, ..self }
    }

    /// Fewer free than this, and more are asked for.
    #[must_use]
    pub fn min_free(self) -> u32 {
        share(self.batch, self.request_percent)
    }

    /// As many free as this, and some are given back.
    #[must_use]
    pub fn max_free(self) -> u32 {
        share(self.batch, self.release_percent)
    }
}

/// `percent` of `batch`, rounded half up.
fn share(batch: u32, percent: u32) -> u32 {
    let hundredths = u64::from(batch) * u64::from(percent);
    u32::try_from((hundredths + 50) / 100).unwrap_or(u32::MAX)
}

/// What the node has and has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// `spec.requestedIPCount`.
    pub requested: u32,
    /// Addresses granted.
    pub granted: u32,
    /// Those that pods use.
    pub in_use: u32,
    /// Those set aside to be given back, still granted.
    pub returning: u32,
    /// The length of `spec.ipsNotInUse`.
    pub listed: u32,
}

/// What the node should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Ask for `requested` in all.
    Ask {
        /// The new `spec.requestedIPCount`.
        requested: u32,
    },
    /// Set `n` free addresses aside, list them, and ask for `requested` in all.
    GiveBack {
        /// The new `spec.requestedIPCount`.
        requested: u32,
        /// How many.
        n: u32,
    },
    /// The list names addresses that are gone already: write it anew.
    Tidy,
}

/// One evaluation.
#[must_use]
pub fn step(scaler: Scaler, supply: Supply) -> Step {
    let scaler = scaler.clamped();
    let Supply { requested, granted, in_use, returning, listed } = supply;
    let free = granted.saturating_sub(in_use).saturating_sub(returning);
    if requested < scaler.max && requested < in_use.saturating_add(scaler.min_free()) {
        let more = requested + scaler.batch - requested % scaler.batch;
        return Step::Ask { requested: more.min(scaler.max) };
    }
    if free >= scaler.max_free() {
        // An uneven request (the cap is no multiple of the batch) goes back to an even one.
        let n = match requested % scaler.batch {
            0 => scaler.batch,
            uneven => uneven,
        };
        let n = n.min(requested);
        if n > 0 {
            return Step::GiveBack { requested: requested - n, n };
        }
    }
    if listed == returning { Step::Rest } else { Step::Tidy }
}
