//! Resources by key, in copies that share what is the same. Not here: what a command changes of them (see the siblings).
//!
//! Every command works on a copy of the region, and every loop compares the copy that it saw last with the one that is.
//! So a copy costs nothing, however much there is, and what differs between two copies is found without a look at what
//! they share.

use std::{fmt, ops::Deref, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::name::ArmId;

/// Resources by key. Reads are those of a map.
pub struct Resources<T, K = ArmId>(OrdMap<K, Arc<T>>);

/// What is not the same in two maps: a key, with what it was before and what it is after.
pub struct Difference<'a, T, K = ArmId> {
    /// The key.
    pub key: &'a K,
    /// What was there, if anything.
    pub before: Option<&'a Arc<T>>,
    /// What is there now, if anything.
    pub after: Option<&'a Arc<T>>,
}

impl<T, K: Ord + Clone> Resources<T, K> {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self(OrdMap::new())
    }

    /// Puts a resource in. A key that is there stays: its spelling is that of the first request.
    pub fn insert(&mut self, key: K, resource: Arc<T>) {
        match self.0.get_mut(&key) {
            Some(there) => *there = resource,
            None => drop(self.0.insert(key, resource)),
        }
    }

    /// Takes a resource out.
    pub fn remove(&mut self, key: &K) -> Option<Arc<T>> {
        self.0.remove(key)
    }

    /// A resource, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut Arc<T>> {
        self.0.get_mut(key)
    }

    /// What differs in `after`, by key.
    pub fn differences<'a>(
        &'a self,
        after: &'a Self,
    ) -> impl Iterator<Item = Difference<'a, T, K>> + 'a
    where
        T: Eq,
    {
        self.0.diff(&after.0).map(|item| match item {
            DiffItem::Add(key, after) => Difference { key, before: None, after: Some(after) },
            DiffItem::Update { old: (_, before), new: (key, after) } => {
                Difference { key, before: Some(before), after: Some(after) }
            }
            DiffItem::Remove(key, before) => Difference { key, before: Some(before), after: None },
        })
    }

    /// Changes all that `which` picks, and leaves the others shared; says whether there was any.
    pub(super) fn change(
        &mut self,
        which: impl Fn(&T) -> bool,
        mut change: impl FnMut(&mut T),
    ) -> bool
    where
        T: Clone,
    {
        let picked = self.0.iter().filter(|(_, resource)| which(resource));
        let picked: Vec<K> = picked.map(|(key, _)| key.clone()).collect();
        for key in &picked {
            if let Some(resource) = self.0.get_mut(key) {
                change(Arc::make_mut(resource));
            }
        }
        !picked.is_empty()
    }
}

impl<T, K> Deref for Resources<T, K> {
    type Target = OrdMap<K, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

// Derived ones would ask the same of resources.
impl<T, K: Clone> Clone for Resources<T, K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T, K: Ord + Clone> Default for Resources<T, K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Eq, K: Ord> PartialEq for Resources<T, K> {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.diff(&other.0).next().is_none()
    }
}

impl<T: fmt::Debug, K: Ord + fmt::Debug> fmt::Debug for Resources<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T, K: Ord + Clone> FromIterator<(K, Arc<T>)> for Resources<T, K> {
    fn from_iter<I: IntoIterator<Item = (K, Arc<T>)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl<'a, T, K: Ord> IntoIterator for &'a Resources<T, K> {
    type Item = (&'a K, &'a Arc<T>);
    type IntoIter = imbl::ordmap::Iter<'a, K, Arc<T>, imbl::shared_ptr::DefaultSharedPtr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, u8)]) -> Resources<u8> {
        let entry = |(name, value): &(&str, u8)| (ArmId::group("s", name), Arc::new(*value));
        entries.iter().map(entry).collect()
    }

    fn check(before: &Resources<u8>, after: &Resources<u8>, expected: &str) {
        let value = |it: Option<&Arc<u8>>| it.map_or("-".to_owned(), ToString::to_string);
        let told = before.differences(after).map(|it| {
            format!("{} {}>{}", it.key.resource_group(), value(it.before), value(it.after))
        });
        assert_eq!(told.collect::<Vec<_>>().join(", "), expected);
        assert_eq!(before == after, expected.is_empty());
    }

    #[test]
    fn what_is_new_other_or_gone_is_found_and_nothing_else() {
        check(&map(&[]), &map(&[]), "");
        check(&map(&[]), &map(&[("a", 1)]), "a ->1");
        check(&map(&[("a", 1)]), &map(&[]), "a 1>-");
        check(&map(&[("a", 1), ("c", 3)]), &map(&[("a", 1), ("b", 2), ("c", 3)]), "b ->2");
        check(&map(&[("a", 1), ("b", 2)]), &map(&[("a", 3), ("b", 2)]), "a 1>3");
        check(&map(&[("b", 2)]), &map(&[("a", 1), ("c", 3)]), "a ->1, b 2>-, c ->3");
    }

    /// More than one node of the tree, with copies that share most of it.
    #[test]
    fn differences_of_copies_are_those_of_their_entries() {
        let whole: Vec<String> = (0..500).map(|i| format!("g{i:03}")).collect();
        let first: Resources<u8> =
            whole.iter().map(|name| (ArmId::group("s", name), Arc::new(0))).collect();
        for at in [0, 15, 16, 250, 499] {
            let key = ArmId::group("s", &whole[at]);
            let mut copy = first.clone();
            copy.insert(key.clone(), Arc::new(1));
            check(&first, &copy, &format!("{} 0>1", whole[at]));
            copy.remove(&key);
            check(&first, &copy, &format!("{} 0>-", whole[at]));
            check(&copy, &first, &format!("{} ->0", whole[at]));
            copy.insert(ArmId::group("s", &format!("{}x", whole[at])), Arc::new(2));
            check(&first, &copy, &format!("{0} 0>-, {0}x ->2", whole[at]));
            copy.insert(key, Arc::new(0));
            check(&first, &copy, &format!("{}x ->2", whole[at]));
        }
    }

    #[test]
    fn a_change_leaves_the_copy_as_it_was_and_shares_what_was_not_picked() {
        let before = map(&[("a", 1), ("b", 2), ("c", 3)]);
        let mut after = before.clone();
        assert!(after.change(|value| *value == 2, |value| *value = 9));
        assert!(!after.change(|value| *value == 2, |value| *value = 9));
        check(&before, &after, "b 2>9");
        let at = |map: &Resources<u8>, name| Arc::clone(&map[&ArmId::group("s", name)]);
        assert!(Arc::ptr_eq(&at(&before, "a"), &at(&after, "a")));
    }

    #[test]
    fn a_key_keeps_its_first_spelling() {
        let mut all = map(&[("First", 1)]);
        all.insert(ArmId::group("S", "FIRST"), Arc::new(2));
        let told: Vec<_> = all.iter().map(|(key, value)| (key.resource_group(), **value)).collect();
        assert_eq!(told, [("First", 2)]);
    }
}
