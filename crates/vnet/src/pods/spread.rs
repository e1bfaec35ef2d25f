//! Which node a pod goes to when nobody says. Not here: what a pod needs but an address.

use std::collections::BTreeSet;

/// A node's place for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many pods it has.
    pub used: u32,
    /// How many it may have (`maxPods`).
    pub capacity: u32,
}

/// There is not enough place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} pods do not fit: there is place for {free} more on {n_nodes} nodes")]
pub struct Full {
    /// How many were to be placed.
    pub wanted: usize,
    /// How many fit.
    pub free: usize,
    /// How many nodes there are.
    pub n_nodes: usize,
}

/// For each of `n` pods the index of its room: always the one with fewest pods, the first of several. All fit,
/// or none is placed.
pub fn spread(rooms: &[Room], n: usize) -> Result<Vec<usize>, Full> {
    let mut open: BTreeSet<(u32, usize)> = rooms
        .iter()
        .enumerate()
        .filter(|(_, room)| room.used < room.capacity)
        .map(|(index, room)| (room.used, index))
        .collect();
    let mut placed = Vec::with_capacity(n);
    while placed.len() < n {
        let Some((used, index)) = open.pop_first() else {
            return Err(Full { wanted: n, free: placed.len(), n_nodes: rooms.len() });
        };
        placed.push(index);
        if rooms.get(index).is_some_and(|room| used + 1 < room.capacity) {
            open.insert((used + 1, index));
        }
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rooms() -> impl Strategy<Value = Vec<Room>> {
        let room = (0_u32..6, 0_u32..6).prop_map(|(used, capacity)| Room { used, capacity });
        proptest::collection::vec(room, 0..6)
    }

    proptest! {
        #[test]
        fn nobody_is_over_full_and_the_load_is_even(rooms in rooms(), n in 0_usize..20) {
            let free: u32 = rooms.iter().map(|room| room.capacity.saturating_sub(room.used)).sum();
            let free = usize::try_from(free).expect("small");
            match spread(&rooms, n) {
                Err(full) => prop_assert_eq!((full.free, n > free), (free, true)),
                Ok(placed) => {
                    prop_assert_eq!(placed.len(), n);
                    let mut after = rooms.clone();
                    for index in &placed {
                        after[*index].used += 1;
                        prop_assert!(after[*index].used <= after[*index].capacity);
                    }
                    // A room that got a pod is at most one ahead of any that could still take one.
                    for index in placed {
                        for room in after.iter().filter(|room| room.used < room.capacity) {
                            prop_assert!(after[index].used <= room.used + 1);
                        }
                    }
                }
            }
        }
    }
}
