//! The latest departures, for reports on scaling.

use std::collections::VecDeque;

use tourin_registry_api::wire::DepartureRecord;

/// The number of departures that are kept.
pub const MAX_DEPARTURES: usize = 256;

/// The latest departures, the oldest first.
#[derive(Debug, Default)]
pub struct Departures(VecDeque<DepartureRecord>);

impl Departures {
    /// Adds the latest.
    pub fn add(&mut self, record: DepartureRecord) {
        if self.0.len() >= MAX_DEPARTURES {
            self.0.pop_front();
        }
        self.0.push_back(record);
    }

    /// Those of all services or of one.
    pub fn list(&self, service: Option<&str>) -> Vec<DepartureRecord> {
        let is_wanted =
            |record: &&DepartureRecord| service.is_none_or(|name| record.instance.service == name);
        self.0.iter().filter(is_wanted).cloned().collect()
    }
}
