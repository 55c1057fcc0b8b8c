//! Server and client against each other, over a control plane that answers from memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::api::{ServeError, Server};
use super::client::{Client, ClientError, Target};
use super::model::*;
use crate::config::{Api, Role, Traffic};

/// Answers from memory and keeps what it was asked.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<Request>>,
    events: Mutex<Vec<Event>>,
}

fn status() -> Status {
    Status {
        mover: "p1".into(),
        id: 1,
        site: "here".into(),
        role: Role::Primary,
        version: "0".into(),
        pid: 1,
        uptime_ms: 5,
        ready: true,
        epoch: 1,
        map_version: 1,
        coordinator: None,
        traffic: Traffic::Separate,
        degraded: vec![],
        warnings: vec![],
        cluster: ClusterInfo::default(),
        groups: vec![],
    }
}

fn set(id: u64) -> SetInfo {
    SetInfo {
        group: "bank".into(),
        id,
        colour: colour_name(id).into(),
        state: SetState::Closing,
        updates: 0,
        bytes: 0,
        opened_unix_ms: None,
        closed_unix_ms: None,
        confirmed_unix_ms: None,
        applied_unix_ms: None,
        hold_ns: None,
        manifest: vec![],
    }
}

impl ControlPlane for Fake {
    fn call(&self, request: Request) -> Result<Response, ApiError> {
        self.asked.lock().unwrap().push(request.clone());
        match request {
            Request::Status => Ok(Response::Status(status())),
            Request::SetClose { group } if group == "bank" => Ok(Response::Set(set(7))),
            Request::SetClose { group } => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("there is no group {group:?}"),
                "setline group show lists them",
            )),
            Request::ApplyPause { .. } => {
                Err(ApiError::new(ErrorCode::NotCoordinator, "ask s1", "use --target"))
            }
            Request::Ledger { .. } => Ok(Response::Ledger(vec![])),
            Request::Events { since, .. } => {
                let events = self.events.lock().unwrap();
                Ok(Response::Events(events.iter().filter(|e| e.id > since).cloned().collect()))
            }
            Request::Shutdown { .. } => Ok(Response::Done),
            Request::MoverList => {
                std::thread::sleep(Duration::from_secs(5));
                Ok(Response::Movers(vec![]))
            }
            other => Err(ApiError::new(ErrorCode::Internal, format!("{other:?}"), "")),
        }
    }
}

struct Bench {
    directory: tempfile::TempDir,
    fake: Arc<Fake>,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let api = Api {
            socket: directory.path().join("api.sock"),
            listen: Some("127.0.0.1:0".parse().unwrap()),
        };
        let server = Server::start(&api, fake.clone()).unwrap();
        Self { directory, fake, server }
    }
    fn api(&self) -> Api {
        Api { socket: self.directory.path().join("api.sock"), listen: None }
    }
    fn client(&self) -> Client {
        let target = Target::Unix(self.directory.path().join("api.sock"));
        Client::new(target, Duration::from_secs(20)).unwrap()
    }
}

#[test]
fn both_sockets_answer_alike() {
    let bench = Bench::new();
    assert_eq!(bench.client().status().unwrap(), status());
    let target = bench.server.listen().unwrap().to_string().parse().unwrap();
    let tcp = Client::new(target, Duration::from_secs(20)).unwrap();
    assert_eq!(tcp.status().unwrap(), status());
}

#[test]
fn paths_carry_their_parameters() {
    let bench = Bench::new();
    let client = bench.client();
    assert_eq!(client.close_set("bank").unwrap(), set(7));
    client.ledger("bank/led ger&", 3).unwrap();
    client.shutdown(true).unwrap();
    let asked = bench.fake.asked.lock().unwrap();
    assert_eq!(
        *asked,
        [
            Request::SetClose { group: "bank".into() },
            Request::Ledger { volume: "bank/led ger&".into(), limit: 3 },
            Request::Shutdown { drain: true },
        ]
    );
}

#[test]
fn errors_arrive_with_code_words_and_advice() {
    let bench = Bench::new();
    let error = bench.client().close_set("x").unwrap_err();
    assert_eq!(error.to_string(), "there is no group \"x\"; setline group show lists them");
    assert_eq!(error.exit_code(), ExitCode::Usage);
    let ClientError::Api(error) = bench.client().pause_apply("bank").unwrap_err() else {
        panic!("not the mover's error")
    };
    assert_eq!(error.code, ErrorCode::NotCoordinator);
}

#[test]
fn a_period_out_of_range_never_reaches_the_control_plane() {
    let bench = Bench::new();
    let error = bench.client().set_period("bank", 9).unwrap_err();
    assert_eq!(error.to_string(), "a period of 9 ms; allowed: 10 to 2592000000 ms");
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(bench.fake.asked.lock().unwrap().is_empty());
}

#[test]
fn a_waiting_request_is_answered_by_the_next_event() {
    let bench = Bench::new();
    let event = Event {
        id: 1,
        time_unix_ms: 0,
        level: EventLevel::Info,
        kind: "start".into(),
        group: None,
        message: "started".into(),
    };
    let fake = bench.fake.clone();
    let late = event.clone();
    let writer = std::thread::spawn(move || {
        // After the request has been asked once in vain.
        while fake.asked.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        fake.events.lock().unwrap().push(late);
    });
    let events = bench.client().events(0, Duration::from_secs(15)).unwrap();
    writer.join().unwrap();
    assert_eq!(events, [event]);
    assert_eq!(bench.client().events(1, Duration::ZERO).unwrap(), []);
}

#[test]
fn a_mover_that_is_not_there_is_unreachable() {
    let target = Target::Unix("/nonexistent/api.sock".into());
    let client = Client::new(target, Duration::from_secs(1)).unwrap();
    assert_eq!(client.status().unwrap_err().exit_code(), ExitCode::Unreachable);
}

#[test]
fn a_slow_answer_is_a_timeout() {
    let bench = Bench::new();
    let target = Target::Unix(bench.api().socket);
    let client = Client::new(target, Duration::from_millis(50)).unwrap();
    assert_eq!(client.movers().unwrap_err().exit_code(), ExitCode::Timeout);
}

#[test]
fn a_second_server_on_the_same_socket_is_refused_and_a_stale_socket_replaced() {
    let bench = Bench::new();
    let second = Server::start(&bench.api(), bench.fake.clone());
    assert!(matches!(second, Err(ServeError::InUse { .. })));
    // The refused one must not have removed the socket of the first.
    bench.client().status().unwrap();

    let stale = bench.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let api = Api { socket: stale.clone(), listen: None };
    Server::start(&api, bench.fake.clone()).unwrap().stop();
    assert!(!stale.exists(), "a stopped server removes its socket");
}

#[test]
fn targets_are_paths_or_addresses() {
    assert_eq!("/run/a.sock".parse(), Ok(Target::Unix("/run/a.sock".into())));
    assert_eq!("unix:a.sock".parse(), Ok(Target::Unix("a.sock".into())));
    assert_eq!("host:7480".parse(), Ok(Target::Tcp("host:7480".into())));
    assert_eq!("[::1]:7480".parse(), Ok(Target::Tcp("[::1]:7480".into())));
    for bad in ["", "host", "host:", "host:x", ":1", "host:0"] {
        assert!(bad.parse::<Target>().is_err(), "{bad}");
    }
}
