//! `tourin ctl`: the instances in the registry, and what an operator decides about them.
//!
//! The commands join the mesh as an operator and call the registry. A change is printed with its receipt: how
//! many gateways have acknowledged it, and which was the last. Without the acknowledgement of every gateway
//! that is connected the exit code is 1.

mod table;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tourin_chassis::config::MeshAccess;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::wire::{MAX_WAIT_MS, OverrideRequest};
use tourin_registry_api::{ClientError, Departure, RegistryClient};

use crate::events::table::print;
use crate::joined;

/// What to do in the registry.
#[derive(Debug, Clone, Args)]
pub struct CtlCommand {
    /// What to do.
    #[command(subcommand)]
    pub action: CtlAction,
}

/// The actions.
#[derive(Debug, Clone, Subcommand)]
pub enum CtlAction {
    /// List the instances with their state, weight, version and zone
    Instances(OfService),
    /// Take an instance out of service: gateways stop sending to it. It runs on, and stays out of service
    /// until it is enabled or leaves
    Drain(OneInstance),
    /// Take an instance that was drained back into service
    Enable(OneInstance),
    /// List the weights of a service's instances, or set some
    Weights(Weights),
    /// Print every change of the instances as it happens, until it is interrupted
    Watch(OfService),
    /// List the latest departures: requests served, errors, the slowest gateway to acknowledge, and the time
    /// to drain
    ScaleReport(OfService),
    /// Remove the instances of a service that the registry keeps although their leases have ended
    EndProtection(OneService),
}

impl CtlAction {
    fn mesh(&self) -> &MeshAccess {
        match self {
            Self::Instances(of) | Self::Watch(of) | Self::ScaleReport(of) => &of.mesh,
            Self::Drain(one) | Self::Enable(one) => &one.mesh,
            Self::Weights(weights) => &weights.mesh,
            Self::EndProtection(one) => &one.mesh,
        }
    }
}

/// One service.
#[derive(Debug, Clone, Args)]
pub struct OneService {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// All services, or one.
#[derive(Debug, Clone, Args)]
pub struct OfService {
    /// Only this service's
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// One instance.
#[derive(Debug, Clone, Args)]
pub struct OneInstance {
    /// Its service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Its id, as `tourin ctl instances` shows it
    #[arg(value_name = "ID")]
    pub id: String,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

/// Weights of a service's instances.
#[derive(Debug, Clone, Args)]
pub struct Weights {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// New weights, from 0 to 1000; ID=own gives an instance back the weight with which it registered
    #[arg(value_name = "ID=WEIGHT", value_parser = assignment)]
    pub weights: Vec<(String, OverrideRequest)>,
    #[allow(missing_docs, reason = "its help is its fields'")]
    #[command(flatten)]
    pub mesh: MeshAccess,
}

fn assignment(text: &str) -> Result<(String, OverrideRequest), String> {
    let expected = "expected ID=WEIGHT with a weight from 0 to 1000, or ID=own";
    let (id, weight) = text.split_once('=').ok_or(expected)?;
    let request = match weight {
        "own" => OverrideRequest { own_weight: true, ..OverrideRequest::default() },
        weight => {
            let weight = weight.parse().map_err(|_| expected)?;
            tourin_registry_api::limits::weight(weight).map_err(|_| expected)?;
            OverrideRequest { weight: Some(weight), ..OverrideRequest::default() }
        }
    };
    Ok((id.to_owned(), request))
}

/// Runs the command.
///
/// # Errors
/// When the registry does not answer, or refuses.
pub async fn run(command: &CtlCommand, stop: &Shutdown) -> anyhow::Result<ExitCode> {
    let joined = joined::join(command.action.mesh()).await?;
    let registry = &joined.registry;
    match &command.action {
        CtlAction::Instances(of) => {
            let report = registry.leases(of.service.as_deref()).await?;
            let (lines, closing) = table::instances(&report);
            print(&lines, &closing)?;
        }
        CtlAction::Drain(one) => return out_of_service(registry, one, true).await,
        CtlAction::Enable(one) => return out_of_service(registry, one, false).await,
        CtlAction::Weights(Weights { service, weights, .. }) => {
            let mut code = ExitCode::SUCCESS;
            for (id, request) in weights {
                let departure = decide(registry, (service, id), request).await?;
                if !departure.acknowledged {
                    code = ExitCode::FAILURE;
                }
                let line = format!("{service}/{id}  {}", table::receipt(&departure));
                print(&[line], "")?;
            }
            let report = registry.leases(Some(service)).await?;
            print(&table::weights(&report), "")?;
            return Ok(code);
        }
        CtlAction::Watch(of) => watch::run(registry, of.service.as_deref(), stop).await?,
        CtlAction::ScaleReport(of) => {
            let report = registry.scale_report(of.service.as_deref()).await?;
            let (lines, closing) = table::departures(&report);
            print(&lines, &closing)?;
        }
        CtlAction::EndProtection(OneService { service, .. }) => {
            registry.end_protection(service).await.map_err(|error| match error {
                ClientError::Unknown => anyhow::anyhow!("{service} is not protected"),
                error => error.into(),
            })?;
            print(&[format!("{service}  leases count again")], "")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn out_of_service(
    registry: &RegistryClient,
    OneInstance { service, id, .. }: &OneInstance,
    is_out: bool,
) -> anyhow::Result<ExitCode> {
    let request = OverrideRequest { out_of_service: Some(is_out), ..OverrideRequest::default() };
    let departure = decide(registry, (service, id), &request).await?;
    let state = if is_out { "OUT_OF_SERVICE" } else { "enabled" };
    print(&[format!("{service}/{id}  {state}  {}", table::receipt(&departure))], "")?;
    Ok(if departure.acknowledged { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn decide(
    registry: &RegistryClient,
    (service, id): (&str, &str),
    request: &OverrideRequest,
) -> anyhow::Result<Departure> {
    let wait = Duration::from_millis(MAX_WAIT_MS);
    match registry.set_override((service, id), request, wait).await {
        Err(ClientError::Unknown) => {
            anyhow::bail!(
                "the registry knows no instance {id} of {service}; `tourin ctl instances` lists them"
            )
        }
        decided => decided.context("the registry"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_numbers_or_the_instances_own() {
        let (id, request) = assignment("core-1=250").unwrap();
        assert_eq!((&*id, request.weight, request.own_weight), ("core-1", Some(250), false));
        let (_, request) = assignment("core-1=own").unwrap();
        assert_eq!((request.weight, request.own_weight), (None, true));
        for wrong in ["core-1", "core-1=", "core-1=1001", "core-1=-1", "core-1=heavy"] {
            assert!(assignment(wrong).unwrap_err().contains("ID=WEIGHT"), "{wrong}");
        }
    }
}
