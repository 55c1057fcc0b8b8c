//! Which movers a command talks to.

use std::collections::BTreeSet;

use super::CliError;
use super::args::Arguments;
use crate::config::Role;
use crate::control::client::{Client, ClientError, Target};
use crate::control::model::ErrorCode;
use crate::lab::site::Site;

/// The movers a command talks to.
pub(super) struct Reach {
    clients: Vec<Client>,
}

impl Reach {
    /// The movers that the arguments name.
    pub(super) fn new(arguments: &Arguments) -> Result<Self, CliError> {
        let mut targets = arguments.target.clone();
        if let Some(directory) = &arguments.lab {
            let site = Site::read(directory).map_err(|error| CliError::Usage(error.to_string()))?;
            targets.extend(site.movers.into_iter().map(|mover| Target::Unix(mover.socket)));
        }
        if targets.is_empty() {
            return Err(CliError::Usage(
                "no mover named; use --target PATH|HOST:PORT, --lab DIR, or the environment \
                 variable SETLINE_API"
                    .to_owned(),
            ));
        }
        Self::of(targets, arguments.timeout)
    }

    fn of(targets: Vec<Target>, limit: std::time::Duration) -> Result<Self, CliError> {
        let clients: Result<_, _> =
            targets.into_iter().map(|target| Client::new(target, limit)).collect();
        Ok(Self { clients: clients? })
    }

    pub(super) fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// The name of mover `at`: what it calls itself, or where it is if it does not answer.
    pub(super) fn name(&self, at: usize) -> String {
        let client = &self.clients[at];
        client.status().map_or_else(|_| client.target().to_string(), |status| status.mover)
    }

    /// Asks every mover.
    pub(super) fn each<T>(
        &self,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Vec<(&Client, Result<T, ClientError>)> {
        self.clients.iter().map(|client| (client, ask(client))).collect()
    }

    /// Asks every mover; those that do not answer are left out unless none does.
    pub(super) fn all<T>(
        &self,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<Vec<(String, T)>, CliError> {
        let mut answers = Vec::new();
        let mut failed = None;
        for (at, client) in self.clients.iter().enumerate() {
            match ask(client) {
                Ok(answer) => answers.push((self.name(at), answer)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if answers.is_empty() => Err(error.into()),
            _ => Ok(answers),
        }
    }

    /// Asks one mover after the other until one answers.
    pub(super) fn first<T>(
        &self,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, CliError> {
        let mut failed = None;
        for client in &self.clients {
            match ask(client) {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or_else(|| Err(CliError::Usage("no mover named".to_owned())), |e| Err(e.into()))
    }

    /// Has the coordinator of a site do something: asks one of its movers after the other until one
    /// is it. What the coordinator itself says is final.
    pub(super) fn change<T>(
        &self,
        role: Role,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, CliError> {
        // A single target is asked as it is: it may know better than this program.
        let there = |client: &&Client| {
            self.clients.len() == 1 || client.status().is_ok_and(|status| status.role == role)
        };
        let mut failed = None;
        for client in self.clients.iter().filter(there) {
            match ask(client) {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Api(error)) if error.code == ErrorCode::NotCoordinator => {
                    // It says more than a mover that is not there.
                    failed = Some(ClientError::Api(error));
                }
                Err(error @ ClientError::Unreachable { .. }) => failed = failed.or(Some(error)),
                Err(error) => return Err(error.into()),
            }
        }
        let site = if role == Role::Primary { "primary" } else { "secondary" };
        failed.map_or_else(
            || Err(CliError::Usage(format!("no mover of the {site} site among the targets"))),
            |error| Err(error.into()),
        )
    }

    /// The group named, or the only one there is.
    pub(super) fn group(&self, named: Option<&str>) -> Result<String, CliError> {
        if let Some(name) = named {
            return Ok(name.to_owned());
        }
        let groups = self.first(Client::groups)?;
        let names: BTreeSet<String> = groups.into_iter().map(|group| group.name).collect();
        let mut names = names.into_iter();
        match (names.next(), names.next()) {
            (Some(only), None) => Ok(only),
            (Some(one), Some(other)) => Err(CliError::Usage(format!(
                "several groups ({one}, {other}, ...); name the one that is meant"
            ))),
            _ => Err(CliError::Usage("the mover has no group".to_owned())),
        }
    }
}
