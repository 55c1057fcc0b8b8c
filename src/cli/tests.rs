//! Whole commands against a control plane that answers from memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::Parser;

use super::*;
use crate::config::{Api, Traffic};
use crate::control::api::Server;
use crate::control::model::*;

/// One mover that answers from memory.
struct Fake {
    name: &'static str,
    role: Role,
    coordinator: bool,
    degraded: Vec<String>,
}

impl Fake {
    fn group(&self) -> GroupStatus {
        GroupStatus {
            name: "bank".into(),
            id: 1,
            nqn: "nqn.2026-11.io.setline:bank".into(),
            state: GroupState::Consistent,
            since_unix_ms: 0,
            reason: String::new(),
            protected: true,
            needs_resync: None,
            copies: 2,
            period_ms: 100,
            timestamps: None,
            apply: match self.role {
                Role::Primary => ApplyState::NotHere,
                Role::Secondary => ApplyState::Paused { set: 5 },
            },
            sets: MarksInfo { open: 7, closing: 0, transfer: 6, received: 5, applied: 5 },
            consistency_point: None,
            recovery_point_ms: Some(123.0),
            backlog_bytes: 4096,
            backlog_sets: 2,
            unreplicated: Vec::new(),
            totals: GroupTotals::default(),
            boundary_hold_ns: Summary::default(),
            write_latency_ns: Summary::default(),
            recovery_point_us: Summary::default(),
        }
    }
}

impl ControlPlane for Fake {
    fn call(&self, request: Request) -> Result<Response, ApiError> {
        Ok(match request {
            Request::Status => Response::Status(Status {
                mover: self.name.into(),
                id: 1,
                site: "here".into(),
                role: self.role,
                version: "0".into(),
                pid: 1,
                uptime_ms: 2_000,
                ready: true,
                epoch: 3,
                map_version: 4,
                coordinator: Some("p1".into()),
                degraded: self.degraded.clone(),
                warnings: vec![format!("{}.toml:1:1: warning: one copy", self.name)],
                traffic: Traffic::Separate,
                cluster: ClusterInfo::default(),
                groups: vec![self.group()],
            }),
            Request::GroupList => Response::Groups(vec![self.group()]),
            Request::ApplyPause { .. } if self.coordinator && self.role == Role::Secondary => {
                Response::Group(self.group())
            }
            Request::SetClose { .. } => {
                return Err(ApiError::new(ErrorCode::Refused, "not now", "wait"));
            }
            _ => return Err(ApiError::new(ErrorCode::NotCoordinator, "another one is", "ask it")),
        })
    }
}

/// A place for output that outlives the printer.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Movers {
    directory: tempfile::TempDir,
    servers: Vec<Server>,
    targets: Vec<String>,
}

impl Movers {
    fn new(fakes: Vec<Fake>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (mut servers, mut targets) = (Vec::new(), Vec::new());
        for fake in fakes {
            let socket = directory.path().join(fake.name);
            targets.push(socket.display().to_string());
            let api = Api { socket, listen: None };
            servers.push(Server::start(&api, Arc::new(fake)).unwrap());
        }
        Self { directory, servers, targets }
    }

    /// A primary and two secondary movers, the second of which coordinates.
    fn three() -> Self {
        let fake = |name, role, coordinator| Fake { name, role, coordinator, degraded: vec![] };
        Self::new(vec![
            fake("p1", Role::Primary, true),
            fake("s1", Role::Secondary, false),
            fake("s2", Role::Secondary, true),
        ])
    }

    /// Output and outcome of a command.
    fn run(&self, command: &str) -> (String, Result<(), CliError>) {
        let targets = ["--target".to_owned(), self.targets.join(",")];
        let words = command.split_whitespace().map(str::to_owned);
        let all = std::iter::once("setline".to_owned()).chain(targets).chain(words);
        let arguments = Arguments::try_parse_from(all).unwrap();
        let paper = Paper::default();
        let mut out = Printer::to(Box::new(paper.clone()), arguments.output);
        let result = run_to(&mut out, &arguments);
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        (text, result)
    }
}

#[test]
fn status_shows_every_mover_and_says_a_common_warning_once() {
    let (text, result) = Movers::three().run("status");
    result.unwrap();
    for mover in ["p1", "s1", "s2"] {
        assert!(text.contains(&format!("│ {mover} ")), "{text}");
    }
    assert!(text.contains("consistent, apply paused"), "{text}");
    assert!(text.contains("5 teal") && text.contains("123 ms"), "{text}");
    assert_eq!(text.matches("warning: one copy").count(), 1, "{text}");
}

#[test]
fn status_as_json_is_what_the_movers_said() {
    let (text, result) = Movers::three().run("status --output json");
    result.unwrap();
    let statuses: Vec<Status> = serde_json::from_str(&text).unwrap();
    let names: Vec<_> = statuses.iter().map(|status| status.mover.as_str()).collect();
    assert_eq!(names, ["p1", "s1", "s2"]);
}

#[test]
fn a_degraded_or_silent_mover_is_exit_code_6_and_named() {
    let mut fakes = vec![Fake {
        name: "p1",
        role: Role::Primary,
        coordinator: true,
        degraded: vec!["the link to s1 is down".into()],
    }];
    let (text, result) = Movers::new(fakes).run("status");
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Degraded);
    assert!(text.contains("degraded: p1: the link to s1 is down"), "{text}");

    fakes = vec![Fake { name: "p1", role: Role::Primary, coordinator: true, degraded: vec![] }];
    let mut movers = Movers::new(fakes);
    movers.targets.push(movers.directory.path().join("gone").display().to_string());
    let (text, result) = movers.run("status");
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Degraded);
    assert!(text.contains("no mover answers there"), "{text}");
}

#[test]
fn what_changes_something_finds_the_coordinator_of_the_right_site() {
    let movers = Movers::three();
    let (text, result) = movers.run("group pause-apply");
    result.unwrap();
    assert_eq!(text, "group bank: apply paused after set 5 teal, period 100 ms\n");
    let (_, result) = movers.run("set close");
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Refused);
    let (_, result) = movers.run("group set-period 50ms");
    let error = result.unwrap_err();
    assert_eq!(
        (error.exit_code(), error.to_string().as_str()),
        (ExitCode::Usage, "another one is; ask it")
    );
}

#[test]
fn stopped_movers_are_unreachable() {
    let mut movers = Movers::three();
    movers.servers.clear();
    let (_, result) = movers.run("group show");
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Unreachable);
}
