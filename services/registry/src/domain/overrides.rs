//! What operators decide about instances, beside what these say of themselves.

use serde::{Deserialize, Serialize};
use tourin_registry_api::wire::OverrideRequest;
use tourin_registry_api::{Instance, Status, WEIGHT};

/// An operator's decisions about one instance. They hold until the operator takes them back or the instance
/// leaves: an instance whose lease ends is the same when it comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// It gets no requests.
    #[serde(default)]
    pub out_of_service: bool,
    /// Its weight, instead of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl Override {
    /// Whether it decides nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same with what a request changes.
    #[must_use]
    pub fn changed(self, request: &OverrideRequest) -> Self {
        Self {
            out_of_service: request.out_of_service.unwrap_or(self.out_of_service),
            weight: request.weight.or(self.weight.filter(|_| !request.own_weight)),
        }
    }

    /// How everybody sees an instance that registered so.
    pub fn applied(&self, mut instance: Instance) -> Instance {
        if self.out_of_service && instance.status == Status::Up {
            instance.status = Status::OutOfService;
        }
        if let Some(weight) = self.weight {
            instance.metadata.insert(WEIGHT.to_owned(), weight.to_string());
        }
        instance
    }
}
