//! Network security groups, their rules, application security groups.

use super::{Change, UNCHANGED, refusal};
use crate::{
    command::{Accepted, Common},
    fault::Fault,
    model::SecurityRule,
    name::ArmId,
};

impl Change {
    pub(super) fn put_security_group(
        &mut self,
        common: &Common,
        _rules: Option<Vec<SecurityRule>>,
    ) -> Result<Accepted, Fault> {
        Err(refusal::not_found(&common.id))
    }

    pub(super) fn put_security_rule(
        &mut self,
        id: &ArmId,
        _rule: SecurityRule,
    ) -> Result<Accepted, Fault> {
        Err(refusal::not_found(id))
    }

    pub(super) fn put_application_group(&mut self, common: &Common) -> Result<Accepted, Fault> {
        Err(refusal::not_found(&common.id))
    }

    pub(super) fn delete_security_rule(&mut self, _id: &ArmId) -> Result<Accepted, Fault> {
        Ok(UNCHANGED)
    }

    pub(super) fn refuse_used_security_group(&self, _id: &ArmId) -> Result<(), Fault> {
        Ok(())
    }

    pub(super) fn refuse_used_application_group(&self, _id: &ArmId) -> Result<(), Fault> {
        Ok(())
    }
}
