//! Peerings between virtual networks.

use super::{Change, UNCHANGED, refusal};
use crate::{
    command::{Accepted, PutPeering},
    fault::Fault,
    name::ArmId,
};

impl Change {
    pub(super) fn put_peering(
        &mut self,
        id: &ArmId,
        _peering: PutPeering,
    ) -> Result<Accepted, Fault> {
        Err(refusal::not_found(id))
    }

    pub(super) fn delete_peering(&mut self, _id: &ArmId) -> Result<Accepted, Fault> {
        Ok(UNCHANGED)
    }
}
