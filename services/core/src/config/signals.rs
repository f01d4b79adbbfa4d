//! Settings of shared signals: `TOURIN_SIGNALS_*`.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use chrono::TimeDelta;
use clap::{Args, value_parser};
use http::HeaderValue;
use reqwest::Url;

use crate::app::signals::receive::ReceivePolicy;
use crate::app::signals::transmit::TransmitPolicy;

/// To whom ended sessions are told, and who may end sessions from elsewhere. Nobody by default.
#[derive(Args, Clone, Debug)]
pub struct SignalSettings {
    /// The name of this mesh in security events: their issuer, and their audience when they come from
    /// elsewhere. Usually the URL of the gateway [default: none; no events]
    #[arg(long, env = "TOURIN_SIGNALS_ISSUER", value_name = "ISS")]
    pub signals_issuer: Option<String>,
    /// Where CAEP session-revoked events are pushed (RFC 8935): https, or http on this machine
    #[arg(long, env = "TOURIN_SIGNALS_PUSH_URL", value_name = "URL", value_parser = parse_url)]
    pub signals_push_url: Option<Url>,
    /// The receiver's name, the audience of these events
    #[arg(long, env = "TOURIN_SIGNALS_PUSH_AUDIENCE", value_name = "AUD")]
    pub signals_push_audience: Option<String>,
    /// File with a bearer token for the receiver
    #[arg(long, env = "TOURIN_SIGNALS_PUSH_TOKEN_FILE", value_name = "FILE")]
    pub signals_push_token_file: Option<PathBuf>,
    /// Seconds for which an event waits for a receiver that is away
    #[arg(long, env = "TOURIN_SIGNALS_KEEP_S", value_name = "S", default_value_t = 86_400, value_parser = value_parser!(u32).range(60..=2_592_000))]
    pub signals_keep_s: u32,
    /// The issuer of events that may end members' sessions, posted to /api/security-events
    #[arg(long, env = "TOURIN_SIGNALS_ACCEPT_ISSUER", value_name = "ISS")]
    pub signals_accept_issuer: Option<String>,
    /// Where that issuer publishes its keys (JWKS): https, or http on this machine
    #[arg(long, env = "TOURIN_SIGNALS_ACCEPT_JWKS_URL", value_name = "URL", value_parser = parse_url)]
    pub signals_accept_jwks_url: Option<Url>,
}

impl SignalSettings {
    /// Whether the settings are complete.
    ///
    /// # Errors
    /// When a setting that another one needs is missing.
    pub fn check(&self) -> anyhow::Result<()> {
        self.receive()?;
        self.transmit()?;
        Ok(())
    }

    /// Where events are pushed, and how.
    ///
    /// # Errors
    /// When a setting that it needs is missing.
    pub fn transmit(&self) -> anyhow::Result<Option<(Url, TransmitPolicy)>> {
        let Some(url) = &self.signals_push_url else {
            if self.signals_push_audience.is_some() || self.signals_push_token_file.is_some() {
                bail!(
                    "--signals-push-audience and --signals-push-token-file need --signals-push-url"
                );
            }
            return Ok(None);
        };
        let (Some(issuer), Some(audience)) = (&self.signals_issuer, &self.signals_push_audience)
        else {
            bail!("--signals-push-url needs --signals-issuer and --signals-push-audience");
        };
        let policy = TransmitPolicy {
            issuer: issuer.clone(),
            audience: audience.clone(),
            keep: TimeDelta::seconds(self.signals_keep_s.into()),
        };
        Ok(Some((url.clone(), policy)))
    }

    /// Where the transmitter's keys are, and whose events are accepted.
    ///
    /// # Errors
    /// When a setting that it needs is missing.
    pub fn receive(&self) -> anyhow::Result<Option<(Url, ReceivePolicy)>> {
        match (&self.signals_accept_issuer, &self.signals_accept_jwks_url, &self.signals_issuer) {
            (None, None, _) => Ok(None),
            (Some(issuer), Some(url), Some(audience)) => {
                let policy = ReceivePolicy { issuer: issuer.clone(), audience: audience.clone() };
                Ok(Some((url.clone(), policy)))
            }
            _ => bail!(
                "--signals-accept-issuer, --signals-accept-jwks-url and --signals-issuer go together"
            ),
        }
    }

    /// What the receiver gets in `Authorization`.
    ///
    /// # Errors
    /// When the file cannot be read, or has no token.
    pub fn receiver_authorization(&self) -> anyhow::Result<Option<HeaderValue>> {
        let Some(file) = &self.signals_push_token_file else { return Ok(None) };
        let shown = format!("--signals-push-token-file {}", file.display());
        let token = std::fs::read_to_string(file).with_context(|| shown.clone())?;
        let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
        let mut value = value.ok().filter(|_| !token.trim().is_empty()).with_context(|| {
            format!("{shown}: expected one line with a token of printable ASCII")
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    let expected = "expected https://..., or http:// and an address of this machine";
    let url = Url::parse(text).map_err(|error| format!("{error}; {expected}"))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local => Ok(url),
        _ => Err(expected.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        settings: SignalSettings,
    }

    fn parse(arguments: &[&str]) -> Result<SignalSettings, clap::Error> {
        Probe::try_parse_from(["core"].iter().chain(arguments)).map(|probe| probe.settings)
    }

    #[test]
    fn nothing_is_sent_or_accepted_by_default() {
        let settings = parse(&[]).unwrap();
        assert!(settings.transmit().unwrap().is_none() && settings.receive().unwrap().is_none());
    }

    #[test]
    fn half_of_the_settings_is_an_error_that_names_the_rest() {
        for arguments in [
            &["--signals-push-url", "https://r.example/"][..],
            &["--signals-push-url", "https://r.example/", "--signals-issuer", "i"],
            &["--signals-push-audience", "r"],
        ] {
            let error = parse(arguments).unwrap().transmit().unwrap_err().to_string();
            assert!(error.contains("--signals-push-url"), "{error}");
        }
        for arguments in [
            &["--signals-accept-issuer", "i"][..],
            &["--signals-accept-jwks-url", "https://t.example/jwks"],
            &["--signals-accept-issuer", "i", "--signals-accept-jwks-url", "http://[::1]/"],
        ] {
            let error = parse(arguments).unwrap().receive().unwrap_err().to_string();
            assert!(error.contains("--signals-accept-jwks-url"), "{error}");
        }
    }

    #[test]
    fn other_machines_are_reached_by_tls_alone() {
        for url in ["http://r.example/", "ftp://r.example/", "r.example", "http://10.0.0.1/"] {
            let error = parse(&["--signals-push-url", url]).unwrap_err().to_string();
            assert!(error.contains("--signals-push-url") && error.contains("https"), "{error}");
        }
        for url in ["https://r.example/", "http://127.0.0.1:9/", "http://localhost/"] {
            assert!(parse(&["--signals-push-url", url]).is_ok(), "{url}");
        }
    }
}
