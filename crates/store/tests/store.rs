//! A store as its users see it.

use std::{collections::BTreeMap, sync::Arc};

use redb::{Database, TableDefinition};
use store::{Store, StoreError};
use vnet::{
    command::{Command, Outcome},
    model::Timestamp,
    name::ArmId,
    policy::tags::ServiceTags,
};

fn put_group(name: &str) -> Command {
    Command::PutGroup {
        id: ArmId::group("s", name),
        location: "eastus".to_owned(),
        tags: BTreeMap::new(),
    }
}

#[test]
fn a_change_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    let accepted = store.change(put_group("g"), Timestamp(1)).unwrap();
    assert_eq!(accepted.outcome, Outcome::Created);
    let before = store.snapshot();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(*store.snapshot(), *before);
    assert_eq!(*store.watch().borrow(), 1);
}

#[test]
fn a_second_open_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let _store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::AlreadyOpen { .. }), "{error}");
}

#[test]
fn a_later_format_is_refused_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    drop(Store::open(&path).unwrap());
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    let vnets: TableDefinition<'_, &str, &str> = TableDefinition::new("vnets");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(meta).unwrap().insert("format", 3).unwrap();
    transaction.open_table(vnets).unwrap().insert("v", "{\"from\": \"the future\"}").unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::LaterFormat { found: 3, known: 2 }), "{error}");
}

#[test]
fn what_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    std::fs::write(&path, "hello").unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Engine { .. })));
    std::fs::remove_file(&path).unwrap();
    drop(Database::create(&path).unwrap());
    assert!(matches!(Store::open(&path), Err(StoreError::NotAStore)));
}

#[test]
fn an_unfinished_file_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    std::fs::write(path.with_extension("new"), "half a store").unwrap();
    Store::open(&path).unwrap().change(put_group("g"), Timestamp(1)).unwrap();
    assert!(!path.with_extension("new").exists());
}

#[test]
fn watchers_are_woken_by_changes_only() {
    let store = Store::in_memory().unwrap();
    let mut watch = store.watch();
    store.change(put_group("g"), Timestamp(1)).unwrap();
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), 1);

    let unchanged = store.change(Command::FabricReal { generation: 1 }, Timestamp(2)).unwrap();
    assert_eq!(unchanged.outcome, Outcome::Unchanged);
    let refused = store.change(Command::DeleteGroup { id: ArmId::group("s", "x") }, Timestamp(3));
    assert!(matches!(refused, Err(StoreError::Refused(fault)) if fault.status == 404));
    assert!(!watch.has_changed().unwrap());
}

#[test]
fn writers_wait_for_one_another() {
    let store = Store::in_memory().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = store.clone();
            scope.spawn(move || {
                for i in 0..25 {
                    store.change(put_group(&format!("g{writer}-{i}")), Timestamp(i)).unwrap();
                }
            });
        }
    });
    let region = store.snapshot();
    assert_eq!((region.generation, region.groups.len()), (100, 100));
}

#[test]
fn what_is_not_touched_is_shared() {
    let store = Store::in_memory().unwrap();
    store.change(put_group("a"), Timestamp(1)).unwrap();
    let before = store.snapshot();
    store.change(put_group("b"), Timestamp(2)).unwrap();
    let id = ArmId::group("s", "a");
    assert!(Arc::ptr_eq(&before.groups[&id], &store.snapshot().groups[&id]));
}

#[test]
fn service_tags_are_kept_replaced_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let set = |number: Option<u64>| {
        let list = |change_number| ServiceTags { change_number, tags: BTreeMap::new() };
        Command::SetServiceTags { tags: number.map(list) }
    };
    for number in [Some(1), Some(2), None, Some(3)] {
        let store = Store::open(&path).unwrap();
        store.change(set(number), Timestamp(1)).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        let found = store.snapshot().given_tags.as_ref().map(|tags| tags.change_number);
        assert_eq!(found, number);
    }
}
