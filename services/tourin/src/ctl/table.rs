//! What `tourin ctl` prints: a line per instance or departure, in columns.

use chrono::{DateTime, Utc};
use tourin_registry_api::wire::{DepartureRecord, LeaseInfo, LeaseReport, ScaleReport};
use tourin_registry_api::{Departure, DownReason, Instance, Status, VERSION, ZONE};

use crate::events::table::time;

/// Rows as lines, each column as wide as its widest cell.
fn columns<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Vec<String> {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let width = |column: usize| {
        let widths = all.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

fn metadata(instance: &Instance, key: &str) -> String {
    instance.metadata.get(key).map_or("-", String::as_str).to_owned()
}

/// The leases, and what to know of them.
pub(super) fn instances(report: &LeaseReport) -> (Vec<String>, String) {
    let row = |LeaseInfo { instance, left_ms }: &LeaseInfo| {
        [
            instance.service.clone(),
            instance.id.clone(),
            instance.status.to_string(),
            instance.address.to_string(),
            instance.weight().to_string(),
            metadata(instance, VERSION),
            metadata(instance, ZONE),
            format!("{left_ms} ms"),
        ]
    };
    let head = ["SERVICE", "ID", "STATE", "ADDRESS", "WEIGHT", "VERSION", "ZONE", "LEASE"];
    let lines = columns(head, report.leases.iter().map(row));
    let up = report.leases.iter().filter(|lease| lease.instance.status == Status::Up).count();
    let mut closing = format!(
        "{} instances, {up} of them UP, at version {}",
        report.leases.len(),
        report.version
    );
    for service in &report.protected {
        closing.push_str(&format!(
            "; {service}: too many leases ended at once, so the EXPIRED ones stay until renewals return or \
             `tourin ctl end-protection {service}`"
        ));
    }
    (lines, closing)
}

/// The weights of the leases.
pub(super) fn weights(report: &LeaseReport) -> Vec<String> {
    let row = |LeaseInfo { instance, .. }: &LeaseInfo| {
        [instance.id.clone(), instance.weight().to_string(), instance.status.to_string()]
    };
    columns(["ID", "WEIGHT", "STATE"], report.leases.iter().map(row))
}

/// The receipt of a change.
pub(super) fn receipt(departure: &Departure) -> String {
    let Departure { version, acknowledged, watchers, slowest } = departure;
    let last = match slowest {
        Some(slowest) => format!(", {} last after {} ms", slowest.watcher, slowest.ms),
        None => String::new(),
    };
    let by = format!("acknowledged by {watchers} gateways{last} (version {version})");
    if *acknowledged { by } else { format!("NOT by every gateway in time: {by}") }
}

/// The latest departures, and their sum.
pub(super) fn departures(report: &ScaleReport) -> (Vec<String>, String) {
    let row = |record: &DepartureRecord| {
        let said = record.said.as_ref();
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        let receipt = said.and_then(|said| said.receipt.as_ref());
        let slowest = match receipt {
            Some(Departure { acknowledged: false, .. }) => "NOT ACKNOWLEDGED".to_owned(),
            Some(Departure { slowest: Some(last), .. }) => {
                format!("{} ms {}", last.ms, last.watcher)
            }
            _ => "-".to_owned(),
        };
        [
            time(DateTime::<Utc>::from_timestamp_millis(record.at_ms).unwrap_or_default()),
            record.instance.service.clone(),
            record.instance.id.clone(),
            match record.reason {
                DownReason::Left => "LEFT".to_owned(),
                DownReason::Expired => Status::Expired.to_string(),
            },
            number(said.map(|said| said.served)),
            number(said.map(|said| said.errors)),
            slowest,
            said.map_or("-".to_owned(), |said| format!("{} ms", said.drain_ms)),
        ]
    };
    let head = ["AT", "SERVICE", "ID", "HOW", "SERVED", "ERRORS", "SLOWEST ACK", "DRAIN"];
    let lines = columns(head, report.departures.iter().map(row));
    let said = || report.departures.iter().filter_map(|record| record.said.as_ref());
    let (served, errors): (u64, u64) =
        (said().map(|said| said.served).sum(), said().map(|said| said.errors).sum());
    let count = report.departures.len();
    let expired = report.departures.iter().filter(|record| record.reason == DownReason::Expired);
    let expired = expired.count();
    let closing = format!(
        "{count} departures, {expired} of them by an ended lease; {served} requests served, {errors} errors"
    );
    (lines, closing)
}

#[cfg(test)]
mod tests {
    use tourin_registry_api::wire::{LeaveRequest, SlowestAck};

    use super::*;

    fn instance(id: &str) -> Instance {
        Instance::new("core", id, ([127, 0, 0, 1], 4001).into()).with_metadata(ZONE, "seoul-a")
    }

    #[test]
    fn a_departure_is_reported_with_its_receipt() {
        let receipt = Departure {
            version: 7,
            acknowledged: true,
            watchers: 2,
            slowest: Some(SlowestAck { watcher: "gateway-1".to_owned(), ms: 4 }),
        };
        let said =
            LeaveRequest { served: 120, errors: 1, drain_ms: 35, receipt: Some(receipt.clone()) };
        let record = |id: &str, reason, said| DepartureRecord {
            at_ms: 1_700_000_000_000,
            instance: instance(id),
            reason,
            said,
        };
        let departures_of = ScaleReport {
            departures: vec![
                record("core-1", DownReason::Left, Some(said)),
                record("core-2", DownReason::Expired, None),
            ],
        };
        let (lines, closing) = departures(&departures_of);
        let words = |line: &str| {
            line.split("  ")
                .map(str::trim)
                .filter(|w| !w.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            words(&lines[1])[1..],
            ["core", "core-1", "LEFT", "120", "1", "4 ms gateway-1", "35 ms"]
        );
        assert_eq!(words(&lines[2])[1..], ["core", "core-2", "EXPIRED", "-", "-", "-", "-"]);
        assert!(closing.contains("120 requests served, 1 errors"), "{closing}");
        assert!(!self::receipt(&receipt).contains("NOT"));
        assert!(self::receipt(&Departure { acknowledged: false, ..receipt }).contains("NOT"));
    }

    #[test]
    fn a_protected_service_is_named() {
        let mut kept = instance("core-1");
        kept.status = Status::Expired;
        let report = LeaseReport {
            version: 7,
            protected: vec!["core".to_owned()],
            leases: vec![LeaseInfo { instance: kept, left_ms: 0 }],
        };
        let (lines, closing) = instances(&report);
        assert!(lines[1].contains("EXPIRED") && lines[1].contains("seoul-a"), "{lines:?}");
        assert!(closing.contains("tourin ctl end-protection core"), "{closing}");
        assert!(weights(&report)[1].contains("100"));
    }
}
