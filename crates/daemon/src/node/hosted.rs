//! An agent inside a process that has many of them. Not here: which addresses its node has, and the
//! threads that it works on.
//!
//! *Expected flow.* The host starts it, gives it addresses ([`Hosted::offer`]), hands it the lines that come
//! in at its socket ([`Hosted::answer`]), and calls [`Hosted::tidy`] now and then.
//!
//! *Assumptions.* Every method but `agent` is called on a thread that may go into another
//! network namespace and stay there: the first thing that it does is to enter the node's.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cni::talk::Reply;
use linux::{netns::Netns, pod::Wirer};
use vnet::{
    addr::{Prefix4, Prefix6},
    pods::{
        demand::{Scaler, Step, Supply, step},
        masquerade::Settings,
    },
};

use super::{
    NodeError, agent::Agent, config::Config, ledger::Ledger, server, setup::Setup, source::learn,
};

/// One node's agent.
pub struct Hosted {
    agent: Arc<Agent>,
    netns: Netns,
    config: Config,
    /// For requests: one at a time, as there are many nodes and few processors.
    serving: Mutex<Wirer>,
    /// For everything else, so that a request that waits for a link to go does not keep it from going.
    upkeep: Mutex<Upkeep>,
}

/// What CNS says of a container whose subnet has no more (Azure/azure-container-networking, `crd/nodenetworkconfig`).
const SUBNET_FULL: &str = "NCUpdateSubnetFullError";

/// How long what others did to a node may last. There are many nodes, and each look costs.
const MEND: Duration = Duration::from_secs(3);

struct Upkeep {
    setup: Setup,
    wirer: Wirer,
    /// When the node was looked at last, and the generation of rules that was in order then.
    looked: Instant,
    seen: Option<u32>,
}

/// What a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its block, in modes that have one.
    pub block: Option<Prefix4>,
    /// Its block of IPv6, in dual-stack clusters.
    pub block_v6: Option<Prefix6>,
    /// Its addresses, in other modes.
    pub addresses: Vec<Ipv4Addr>,
    /// Its rules of masquerading.
    pub masquerade: Settings,
    /// Whether it gets fewer addresses than it asks for.
    pub short: Option<Short>,
}

/// Why a node goes short of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// The name of its pod subnet.
    pub subnet: String,
    /// Who holds its addresses, and what would help.
    pub why: String,
}

/// What a node of a pod subnet asks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// How many addresses it should have in all.
    pub total: u32,
    /// Those that it can do without.
    pub released: Vec<Ipv4Addr>,
}

impl Hosted {
    /// Starts it over the leases that it finds. Its socket is open when this returns; whoever listened there is
    /// dead, for the leases' lock is ours.
    pub fn start(netns: Netns, config: Config) -> Result<(Self, UnixListener), NodeError> {
        netns.enter()?;
        let (ledger, found) = Ledger::open(&config.run_directory.join("leases"))?;
        let agent = Arc::new(Agent::new(&config, ledger, found));
        let mut setup = Setup::new(config.clone())?;
        setup.prepare(&agent)?;
        let failed = |source| NodeError::Socket { path: config.socket.clone(), source };
        match fs::remove_file(&config.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => (),
        }
        let listener = UnixListener::bind(&config.socket).map_err(failed)?;
        fs::set_permissions(&config.socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let hosted = Self {
            agent,
            netns,
            serving: Mutex::new(Wirer::new()?),
            upkeep: Mutex::new(Upkeep {
                setup,
                wirer: Wirer::new()?,
                looked: Instant::now(),
                seen: None,
            }),
            config,
        };
        Ok((hosted, listener))
    }

    /// The configuration that it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns when the use of its addresses has changed since the last time.
    pub async fn used(&self) {
        self.agent.used.notified().await;
    }

    /// From now on the node has this. Does nothing when it knows.
    pub fn offer(&self, offer: Offer) -> Result<(), NodeError> {
        let mut upkeep = self.enter(&self.upkeep)?;
        upkeep.setup.set_masquerade(&self.agent, Some(offer.masquerade))?;
        let Offer { block, block_v6, addresses, short, .. } = offer;
        let mut learnt = learn(self.config.network, block, block_v6, addresses);
        if let Some(Short { subnet, why }) = short {
            learnt.origin = Some((subnet, SUBNET_FULL.to_owned()));
            learnt.full = Some(why);
        }
        // What was offered back stays so until it is taken.
        learnt.aside = self.agent.with_pool(|pool| pool.returning().iter().copied().collect());
        upkeep.setup.apply(&self.agent, learnt)
    }

    /// What the plugin is told that sent this line.
    pub fn answer(&self, line: &[u8]) -> Result<Reply, NodeError> {
        let mut wirer = self.enter(&self.serving)?;
        Ok(server::reply(&self.agent, line, &mut wirer))
    }

    /// Does queued releases, deletes links that pods have left, and now and then mends what others broke. Says whether there is more of that to do.
    pub fn tidy(&self) -> Result<bool, NodeError> {
        let mut upkeep = self.enter(&self.upkeep)?;
        let Upkeep { wirer, looked, seen, .. } = &mut *upkeep;
        self.agent.release_queued(wirer);
        self.agent.reap(wirer);
        if looked.elapsed() >= MEND {
            self.agent.mend(wirer, seen);
            *looked = Instant::now();
        }
        Ok(self.agent.n_leaving() > 0)
    }

    /// Whether links of pods are yet to go.
    #[must_use]
    pub fn is_untidy(&self) -> bool {
        self.agent.n_leaving() > 0
    }

    /// What a node asks for that has `has` addresses of its pod subnet, which may be exhausted. `None` when it is content.
    #[must_use]
    pub fn wants(&self, has: usize, is_exhausted: bool) -> Option<Want> {
        let scaler = Scaler::default();
        let scaler = if is_exhausted { scaler.exhausted() } else { scaler };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.agent.with_pool(|pool| {
            let supply = Supply {
                requested: number(has),
                granted: number(pool.n_granted()),
                in_use: number(pool.n_in_use()),
                returning: number(pool.returning().len()),
                listed: number(pool.returning().len()),
            };
            match step(scaler, supply) {
                Step::Rest | Step::Tidy => None,
                Step::Ask { requested } => Some(Want { total: requested, released: Vec::new() }),
                Step::GiveBack { requested, n } => {
                    pool.give_back(usize::try_from(n).unwrap_or_default());
                    let released = pool.returning().iter().copied().collect();
                    Some(Want { total: requested, released })
                }
            }
        })
    }

    /// Takes the thread into the node, and what is needed there from whoever has it.
    fn enter<'a, T>(&self, what: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, NodeError> {
        // A panic has left sockets and numbers, which no half-done work can spoil.
        let guard = what.lock().unwrap_or_else(PoisonError::into_inner);
        self.netns.enter()?;
        Ok(guard)
    }
}
