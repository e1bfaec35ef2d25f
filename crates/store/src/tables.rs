//! A region as tables: one per kind of resource, a resource being JSON text under its id.
//!
//! Table `meta` has the format's number, which is read first and alone, and the generation.

use std::sync::Arc;

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;
use vnet::{
    model::{
        ApplicationGroup, Cluster, LoadBalancer, Machine, NatGateway, Nic, Operation, PublicIp,
        PublicIpPrefix, ResourceGroup, RoleAssignment, RouteTable, SecurityGroup, Vnet,
    },
    name::ArmId,
    policy::tags::ServiceTags,
    region::{Region, Resources},
};

use crate::StoreError;

/// The number of this format. A change to what is written raises it; what was ever written stays readable.
pub(crate) const FORMAT: u64 = 2;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";
const GENERATION_KEY: &str = "generation";

type Table = TableDefinition<'static, &'static str, &'static str>;

/// A resource that has a table.
trait Stored: Eq + Serialize + DeserializeOwned {
    const TABLE: &'static str;
    /// The key in the region's map.
    type Key: Clone + Ord;
    fn key(&self) -> Self::Key;
    /// The key in the table.
    fn text(key: &Self::Key) -> String;
}

macro_rules! stored {
    ($($resource:ty, $table:literal, $($id:ident).+;)*) => {$(
        impl Stored for $resource {
            const TABLE: &'static str = $table;
            type Key = ArmId;
            fn key(&self) -> ArmId {
                self.$($id).+.clone()
            }
            fn text(key: &ArmId) -> String {
                key.key().to_owned()
            }
        }
    )*};
}
stored! {
    ResourceGroup, "groups", id;
    Vnet, "vnets", meta.id;
    RouteTable, "route_tables", meta.id;
    SecurityGroup, "security_groups", meta.id;
    ApplicationGroup, "application_groups", meta.id;
    NatGateway, "nat_gateways", meta.id;
    PublicIpPrefix, "public_ip_prefixes", meta.id;
    PublicIp, "public_ips", meta.id;
    Nic, "nics", meta.id;
    Machine, "machines", meta.id;
    LoadBalancer, "balancers", meta.id;
    Cluster, "clusters", meta.id;
}

impl Stored for Operation {
    const TABLE: &'static str = "operations";
    type Key = Uuid;
    fn key(&self) -> Uuid {
        self.id
    }
    fn text(key: &Uuid) -> String {
        key.to_string()
    }
}

impl Stored for RoleAssignment {
    const TABLE: &'static str = "role_assignments";
    type Key = (String, String);
    fn key(&self) -> (String, String) {
        (self.scope.to_ascii_lowercase(), self.name.to_ascii_lowercase())
    }
    fn text((scope, name): &(String, String)) -> String {
        format!("{scope} {name}")
    }
}

/// There is one list at most.
impl Stored for ServiceTags {
    const TABLE: &'static str = "service_tags";
    type Key = ();
    fn key(&self) {}
    fn text((): &()) -> String {
        "list".to_owned()
    }
}

/// Writes the format's number, when there is none yet.
pub(crate) fn initialise(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(StoreError::engine("making the state"))?;
    {
        let mut meta =
            transaction.open_table(META).map_err(StoreError::engine("making the state"))?;
        let is_new =
            meta.get(FORMAT_KEY).map_err(StoreError::engine("making the state"))?.is_none();
        if !is_new {
            return Ok(());
        }
        meta.insert(FORMAT_KEY, FORMAT).map_err(StoreError::engine("making the state"))?;
        meta.insert(GENERATION_KEY, 0).map_err(StoreError::engine("making the state"))?;
    }
    transaction.commit().map_err(StoreError::engine("making the state"))
}

/// The region that is on disk.
pub(crate) fn load(database: &Database) -> Result<Region, StoreError> {
    let transaction = database.begin_read().map_err(StoreError::engine("reading the state"))?;
    let generation = read_meta(&transaction)?;
    Ok(Region {
        generation,
        groups: read(&transaction)?,
        vnets: read(&transaction)?,
        route_tables: read(&transaction)?,
        security_groups: read(&transaction)?,
        application_groups: read(&transaction)?,
        nat_gateways: read(&transaction)?,
        public_ip_prefixes: read(&transaction)?,
        public_ips: read(&transaction)?,
        nics: read(&transaction)?,
        machines: read(&transaction)?,
        balancers: read(&transaction)?,
        clusters: read(&transaction)?,
        operations: read(&transaction)?,
        role_assignments: read(&transaction)?,
        given_tags: read(&transaction)?.values().next().cloned(),
    })
}

/// The generation, if the format is one that is known here.
fn read_meta(transaction: &ReadTransaction) -> Result<u64, StoreError> {
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Err(StoreError::NotAStore),
        Err(error) => return Err(StoreError::engine("reading the format")(error)),
    };
    let number = |key| {
        let value = meta.get(key).map_err(StoreError::engine("reading the format"))?;
        value.map(|value| value.value()).ok_or(StoreError::NotAStore)
    };
    let found = number(FORMAT_KEY)?;
    if found > FORMAT {
        return Err(StoreError::LaterFormat { found, known: FORMAT });
    }
    number(GENERATION_KEY)
}

fn read<T: Stored>(transaction: &ReadTransaction) -> Result<Resources<T, T::Key>, StoreError> {
    let table = match transaction.open_table(Table::new(T::TABLE)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Resources::new()),
        Err(error) => return Err(StoreError::engine("reading a table")(error)),
    };
    let mut map = Resources::new();
    for row in table.iter().map_err(StoreError::engine("reading a table"))? {
        let (key, text) = row.map_err(StoreError::engine("reading a table"))?;
        let resource: T = serde_json::from_str(text.value()).map_err(|source| {
            StoreError::Corrupt { table: T::TABLE, key: key.value().to_owned(), source }
        })?;
        map.insert(resource.key(), Arc::new(resource));
    }
    Ok(map)
}

/// Writes what is different in `after`, in one durable transaction.
pub(crate) fn save(database: &Database, before: &Region, after: &Region) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(StoreError::engine("beginning a change"))?;
    {
        let mut meta =
            transaction.open_table(META).map_err(StoreError::engine("writing the generation"))?;
        meta.insert(GENERATION_KEY, after.generation)
            .map_err(StoreError::engine("writing the generation"))?;
        // What was read in an older format is written in this one from the first change on.
        meta.insert(FORMAT_KEY, FORMAT).map_err(StoreError::engine("writing the format"))?;
    }
    write(&transaction, &before.groups, &after.groups)?;
    write(&transaction, &before.vnets, &after.vnets)?;
    write(&transaction, &before.route_tables, &after.route_tables)?;
    write(&transaction, &before.security_groups, &after.security_groups)?;
    write(&transaction, &before.application_groups, &after.application_groups)?;
    write(&transaction, &before.nat_gateways, &after.nat_gateways)?;
    write(&transaction, &before.public_ip_prefixes, &after.public_ip_prefixes)?;
    write(&transaction, &before.public_ips, &after.public_ips)?;
    write(&transaction, &before.nics, &after.nics)?;
    write(&transaction, &before.machines, &after.machines)?;
    write(&transaction, &before.balancers, &after.balancers)?;
    write(&transaction, &before.clusters, &after.clusters)?;
    write(&transaction, &before.operations, &after.operations)?;
    write(&transaction, &before.role_assignments, &after.role_assignments)?;
    let as_map = |tags: &Option<Arc<ServiceTags>>| -> Resources<ServiceTags, ()> {
        tags.iter().map(|tags| ((), Arc::clone(tags))).collect()
    };
    write(&transaction, &as_map(&before.given_tags), &as_map(&after.given_tags))?;
    // The engine's default durability: on disk when this returns.
    transaction.commit().map_err(StoreError::engine("committing a change"))
}

fn write<T: Stored>(
    transaction: &WriteTransaction,
    before: &Resources<T, T::Key>,
    after: &Resources<T, T::Key>,
) -> Result<(), StoreError> {
    let mut differences = before.differences(after).peekable();
    if differences.peek().is_none() {
        return Ok(());
    }
    let mut table = transaction
        .open_table(Table::new(T::TABLE))
        .map_err(StoreError::engine("opening a table"))?;
    for difference in differences {
        let key = T::text(difference.key);
        let Some(resource) = difference.after else {
            table.remove(key.as_str()).map_err(StoreError::engine("removing a resource"))?;
            continue;
        };
        let text = serde_json::to_string(resource.as_ref())
            .map_err(StoreError::engine("rendering a resource"))?;
        table
            .insert(key.as_str(), text.as_str())
            .map_err(StoreError::engine("writing a resource"))?;
    }
    Ok(())
}
