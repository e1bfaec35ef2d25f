//! NAT gateways and public IP prefixes.

use super::{Change, refusal};
use crate::{
    command::{Accepted, Common, PutNatGateway},
    fault::Fault,
    name::ArmId,
};

impl Change {
    pub(super) fn put_nat_gateway(
        &mut self,
        common: &Common,
        _gateway: PutNatGateway,
    ) -> Result<Accepted, Fault> {
        Err(refusal::not_found(&common.id))
    }

    pub(super) fn put_public_ip_prefix(
        &mut self,
        common: &Common,
        _sku: String,
        _length: u8,
    ) -> Result<Accepted, Fault> {
        Err(refusal::not_found(&common.id))
    }

    pub(super) fn refuse_used_nat_gateway(&self, _id: &ArmId) -> Result<(), Fault> {
        Ok(())
    }

    pub(super) fn refuse_used_public_ip_prefix(&self, _id: &ArmId) -> Result<(), Fault> {
        Ok(())
    }
}
