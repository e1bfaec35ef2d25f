//! A machine that loses power at any write: what was acknowledged is there after the next start.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;
use vnet::{
    addr::Prefix4,
    command::{Command, Common},
    model::Timestamp,
    name::ArmId,
    region::Region,
};

use crate::{Store, StoreError};

/// What a disk was asked to do since the last sync.
#[derive(Clone, Debug)]
enum Request {
    Write(u64, Vec<u8>),
    SetLength(u64),
}

/// A disk with a cache, and a number of requests that it still serves.
#[derive(Debug, Default)]
struct Disk {
    /// What a reader sees.
    cached: Vec<u8>,
    /// What is left after a loss of power, at least.
    durable: Vec<u8>,
    /// What may be left, too, in any part.
    pending: Vec<Request>,
    served: u64,
    limit: Option<u64>,
}

fn serve(image: &mut Vec<u8>, request: &Request) {
    match request {
        Request::Write(offset, bytes) => {
            let start = usize::try_from(*offset).unwrap();
            let end = start + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[start..end].copy_from_slice(bytes);
        }
        Request::SetLength(length) => image.resize(usize::try_from(*length).unwrap(), 0),
    }
}

impl Disk {
    fn with(image: Vec<u8>) -> Self {
        Self { cached: image.clone(), durable: image, ..Self::default() }
    }

    fn next(&mut self) -> io::Result<()> {
        if self.limit.is_some_and(|limit| self.served >= limit) {
            return Err(io::Error::other("the power is gone"));
        }
        self.served += 1;
        Ok(())
    }

    fn request(&mut self, request: Request) -> io::Result<()> {
        self.next()?;
        serve(&mut self.cached, &request);
        self.pending.push(request);
        Ok(())
    }

    /// Images that a loss of power now can leave: nothing, all, every other one, or the last of what is pending.
    fn images(&self) -> Vec<Vec<u8>> {
        let last = self.pending.len().saturating_sub(1);
        let keeps: [&dyn Fn(usize) -> bool; 5] =
            [&|_| false, &|_| true, &|i| i % 2 == 0, &|i| i % 2 == 1, &|i| i == last];
        let image = |keep: &dyn Fn(usize) -> bool| {
            let mut image = self.durable.clone();
            for (_, request) in self.pending.iter().enumerate().filter(|(i, _)| keep(*i)) {
                serve(&mut image, request);
            }
            image
        };
        keeps.into_iter().map(image).collect()
    }
}

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Disk>>);

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let start = usize::try_from(offset).unwrap();
        let disk = self.0.lock().unwrap();
        let bytes = disk.cached.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.lock().unwrap().request(Request::SetLength(len))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut disk = self.0.lock().unwrap();
        disk.next()?;
        for request in std::mem::take(&mut disk.pending) {
            serve(&mut disk.durable, &request);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.lock().unwrap().request(Request::Write(offset, data.to_vec()))
    }
}

/// A group, virtual networks with their subnets, and one of them going.
fn commands() -> Vec<Command> {
    let group = ArmId::group("s", "g");
    let put_vnet = |i: u8| Command::PutVnet {
        common: Common {
            id: group.sibling(vnet::kind::VNET, &format!("v{i}")),
            location: None,
            tags: None,
            kept: std::iter::once(("padding".to_owned(), "x".repeat(3_000))).collect(),
        },
        prefixes: vec![Prefix4::containing([10, i, 0, 0].into(), 16).into()],
        subnets: None,
    };
    let mut commands = vec![Command::PutGroup {
        id: group.clone(),
        location: "eastus".to_owned(),
        tags: std::collections::BTreeMap::new(),
    }];
    commands.extend((0..4).map(put_vnet));
    commands.push(Command::FabricReal { generation: 5 });
    commands.push(Command::Delete { id: group.sibling(vnet::kind::VNET, "v2") });
    commands.push(Command::FabricReal { generation: 7 });
    commands
}

/// Runs the commands on a disk until it fails. The answers are: what was acknowledged last, and what the
/// command that failed would have made.
fn run(disk: &Arc<Mutex<Disk>>) -> (Region, Region) {
    let mut acknowledged = Region::default();
    let mut now = 0;
    let Ok(store) = Store::with_backend(Backend(Arc::clone(disk))) else {
        return (acknowledged.clone(), acknowledged);
    };
    for command in commands() {
        now += 1;
        let mut attempted = acknowledged.clone();
        attempted.apply(command.clone(), Timestamp(now)).unwrap();
        match store.change(command, Timestamp(now)) {
            Ok(_) => acknowledged = attempted,
            Err(StoreError::Refused(fault)) => panic!("the command is right: {fault}"),
            Err(_) => {
                assert_eq!(*store.snapshot(), acknowledged, "nobody sees what failed");
                return (acknowledged, attempted);
            }
        }
    }
    (acknowledged.clone(), acknowledged)
}

#[test]
fn what_was_acknowledged_survives_a_loss_of_power_at_any_request() {
    let whole = Arc::new(Mutex::new(Disk::default()));
    run(&whole);
    let n_requests = whole.lock().unwrap().served;
    assert!(n_requests > 50, "the commands reach the disk");
    let mut n_interrupted = 0;
    for limit in 0..n_requests {
        let disk = Arc::new(Mutex::new(Disk { limit: Some(limit), ..Disk::default() }));
        let (acknowledged, attempted) = run(&disk);
        n_interrupted += u32::from(acknowledged != attempted);
        let images = disk.lock().unwrap().images();
        for (i, image) in images.into_iter().enumerate() {
            let disk = Arc::new(Mutex::new(Disk::with(image)));
            match Store::with_backend(Backend(disk)) {
                Ok(store) => {
                    let found = store.snapshot();
                    assert!(
                        *found == acknowledged || *found == attempted,
                        "after {limit} requests, image {i}: generation {} instead of {}",
                        found.generation,
                        acknowledged.generation
                    );
                }
                // A file that was never a store yet; `file::open` makes it under another name.
                Err(_) => {
                    assert_eq!(acknowledged.generation, 0, "after {limit} requests, image {i}");
                }
            }
        }
    }
    assert!(n_interrupted > 10, "changes were interrupted");
}
