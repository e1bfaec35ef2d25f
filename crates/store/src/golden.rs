//! Every format that was ever written stays readable: `tests/golden/format-N.txt` has a store of format N as
//! lines of table, key and value. A line of these files is never changed; another format adds another file.

use std::sync::Arc;

use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
    backends::InMemoryBackend,
};
use vnet::{
    model::{Distribution, PublicIpSettings},
    region::Region,
};

use crate::{Store, tables};

const FORMAT_1: &str = include_str!("../tests/golden/format-1.txt");
const FORMAT_2: &str = include_str!("../tests/golden/format-2.txt");

/// A database with the lines of a golden file.
fn database(text: &str) -> Database {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    let transaction = database.begin_write().unwrap();
    for line in text.lines() {
        let [table, key, value] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        if table == "meta" {
            let meta: TableDefinition<'_, &str, u64> = TableDefinition::new(table);
            transaction
                .open_table(meta)
                .unwrap()
                .insert(key, value.parse::<u64>().unwrap())
                .unwrap();
        } else {
            let resources: TableDefinition<'_, &str, &str> = TableDefinition::new(table);
            transaction.open_table(resources).unwrap().insert(key, value).unwrap();
        }
    }
    transaction.commit().unwrap();
    database
}

/// The lines of a database.
fn text(database: &Database) -> String {
    let transaction = database.begin_read().unwrap();
    let mut lines = Vec::new();
    for table in transaction.list_tables().unwrap() {
        let name = table.name().to_owned();
        if name == "meta" {
            let meta: TableDefinition<'_, &str, u64> = TableDefinition::new(&name);
            for row in transaction.open_table(meta).unwrap().iter().unwrap() {
                let (key, value) = row.unwrap();
                lines.push(format!("{name}\t{}\t{}\n", key.value(), value.value()));
            }
        } else {
            let resources: TableDefinition<'_, &str, &str> = TableDefinition::new(&name);
            for row in transaction.open_table(resources).unwrap().iter().unwrap() {
                let (key, value) = row.unwrap();
                lines.push(format!("{name}\t{}\t{}\n", key.value(), value.value()));
            }
        }
    }
    lines.sort();
    lines.concat()
}

#[test]
fn format_1_is_read() {
    let store = Store::from_database(database(FORMAT_1)).unwrap();
    let region = store.snapshot();
    assert_eq!(region.findings(), Vec::<String>::new());
    let counts = [
        region.groups.len(),
        region.vnets.len(),
        region.route_tables.len(),
        region.public_ips.len(),
        region.nics.len(),
        region.machines.len(),
        region.balancers.len(),
        region.clusters.len(),
        region.role_assignments.len(),
    ];
    assert_eq!(counts, [3, 1, 2, 3, 5, 5, 3, 2, 1]);
    assert!(!region.operations.is_empty());
}

/// When this fails, what is written has changed: raise [`tables::FORMAT`], add a golden file, and keep reading
/// the old ones.
#[test]
fn what_is_written_is_format_2() {
    assert_eq!(tables::FORMAT, 2);
    let region = tables::load(&database(FORMAT_2)).unwrap();
    let again = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    tables::initialise(&again).unwrap();
    tables::save(&again, &Region::default(), &region).unwrap();
    assert_eq!(text(&again), FORMAT_2);
}

/// A third way to choose members is written beside the two that formats 1 and 2 have, which stay as they were.
#[test]
fn how_members_are_chosen_is_written_as_ever() {
    let is = "\"source_ip_affinity\":false";
    for (written, expected) in [
        ("false", Distribution::Default),
        ("true", Distribution::SourceIp),
        ("\"SourceIPProtocol\"", Distribution::SourceIpProtocol),
    ] {
        let text = FORMAT_2.replace(is, &format!("\"source_ip_affinity\":{written}"));
        let again = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        tables::initialise(&again).unwrap();
        let region = tables::load(&database(&text)).unwrap();
        let mut rules = region.balancers.values().flat_map(|it| it.rules.values());
        assert!(rules.all(|rule| rule.distribution == expected), "{written}");
        tables::save(&again, &Region::default(), &region).unwrap();
        assert_eq!(self::text(&again), text, "{written}");
    }
    let unknown = FORMAT_2.replace(is, "\"source_ip_affinity\":\"Sticky\"");
    assert!(tables::load(&database(&unknown)).is_err());
}

/// What a public IP has besides is written where it is not the default, and read again.
#[test]
fn settings_of_public_ips_are_written_where_there_are_any() {
    let mut region = tables::load(&database(FORMAT_2)).unwrap();
    let before = region.clone();
    let id = region.public_ips.keys().next().unwrap().clone();
    let settings = PublicIpSettings { idle_timeout_minutes: 30, dns_label: Some("web".to_owned()) };
    Arc::make_mut(region.public_ips.get_mut(&id).unwrap()).settings = settings;
    let database = database(FORMAT_2);
    tables::save(&database, &before, &region).unwrap();
    let written = text(&database);
    let settings = r#","settings":{"idle_timeout_minutes":30,"dns_label":"web"}"#;
    assert_eq!(written.matches(settings).count(), 1);
    assert_eq!(written.replace(settings, ""), FORMAT_2);
    assert_eq!(tables::load(&database).unwrap().public_ips[&id], region.public_ips[&id]);
}
