//! The API server: HTTP on a Unix socket and, if configured, on TCP.
//!
//! One thread of its own runs a tokio runtime; requests go to a [`ControlPlane`] through
//! `spawn_blocking`, a few at a time, so that neither a slow client nor a slow answer holds
//! anything else up. Paths are versioned; `docs/operations.md` lists them. What this module does
//! not do: authenticate. The socket's mode (0660) is what protects it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Path as Segment, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::Deserialize;
use tokio::sync::watch;

use super::model::{ApiError, ControlPlane, ErrorCode, Metric, Request, Response, Wish};
use crate::config;

/// Requests answered at the same time; more wait.
const CALLS_MAX: usize = 8;
/// How long open connections may take to end when the server stops.
const STOP_MAX: Duration = Duration::from_secs(2);
/// Entries of a list when the client names no limit.
const LIMIT_DEFAULT: usize = 100;
/// Entries of a list at most.
const LIMIT_MAX: usize = 10_000;
/// How long a client may wait for events in one request.
const WAIT_MS_MAX: u64 = 60_000;
/// How often a waiting request looks for new events.
const EVENTS_EVERY: Duration = Duration::from_millis(100);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process answers at the socket.
    #[error("{}: another process answers there; is the mover running already?", .socket.display())]
    InUse {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be made.
    #[error("{}: {error}", .socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The TCP address cannot be listened at.
    #[error("{listen}: {error}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The thread or its runtime cannot be made.
    #[error("the API thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    listen: Option<SocketAddr>,
}

impl Server {
    /// Listens as `api` says and answers with `control`. A socket that a killed process left is
    /// removed first.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind.
    pub fn start(api: &config::Api, control: Arc<dyn ControlPlane>) -> Result<Self, ServeError> {
        let socket = api.socket.clone();
        let unix = bind_unix(&socket)?;
        let tcp = api.listen.map(|listen| {
            let bound = std::net::TcpListener::bind(listen);
            bound.and_then(|tcp| tcp.set_nonblocking(true).map(|()| tcp))
        });
        let tcp = match (tcp.transpose(), api.listen) {
            (Ok(tcp), _) => tcp,
            (Err(error), listen) => {
                let _ = std::fs::remove_file(&socket);
                let listen = listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
                return Err(ServeError::Listen { listen, error });
            }
        };
        let listen = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || serve(unix, tcp, control, stopped))
            .map_err(ServeError::Thread)?;
        Ok(Self { stop, thread: Some(thread), socket, listen })
    }

    /// The TCP address it listens at; the port is the real one if 0 was asked for.
    #[must_use]
    pub fn listen(&self) -> Option<SocketAddr> {
        self.listen
    }

    /// Stops: requests under way are answered, for at most two seconds.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn bind_unix(socket: &Path) -> Result<std::os::unix::net::UnixListener, ServeError> {
    let failed = |error| ServeError::Socket { socket: socket.to_owned(), error };
    if let Ok(there) = std::fs::symlink_metadata(socket) {
        if !there.file_type().is_socket() {
            return Err(failed(io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(ServeError::InUse { socket: socket.to_owned() });
        }
        std::fs::remove_file(socket).map_err(failed)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(socket, mode).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn serve(
    unix: std::os::unix::net::UnixListener,
    tcp: Option<std::net::TcpListener>,
    control: Arc<dyn ControlPlane>,
    stopped: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(CALLS_MAX)
        .thread_name("api-call")
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the API does not run");
            return;
        }
    };
    let app = router(Shared { control, stopped: stopped.clone() });
    let ended = runtime.block_on(async {
        let unix = tokio::net::UnixListener::from_std(unix)?;
        let tcp = tcp.map(tokio::net::TcpListener::from_std).transpose()?;
        let on_unix = axum::serve(unix, app.clone()).with_graceful_shutdown(stop(stopped.clone()));
        let on_tcp = async {
            match tcp {
                Some(tcp) => {
                    axum::serve(tcp, app).with_graceful_shutdown(stop(stopped.clone())).await
                }
                None => Ok(()),
            }
        };
        let both = async { tokio::try_join!(on_unix, on_tcp).map(|_| ()) };
        let overdue = async {
            stop(stopped.clone()).await;
            tokio::time::sleep(STOP_MAX).await;
        };
        tokio::select! {
            ended = both => ended,
            () = overdue => Ok(()),
        }
    });
    if let Err(error) = ended {
        tracing::error!(%error, "the API ended");
    }
    runtime.shutdown_timeout(STOP_MAX);
}

async fn stop(mut stopped: watch::Receiver<bool>) {
    // An error means that the server is gone: the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

#[derive(Clone)]
struct Shared {
    control: Arc<dyn ControlPlane>,
    stopped: watch::Receiver<bool>,
}

impl Shared {
    async fn call(&self, request: Request) -> Result<Response, ApiError> {
        let control = Arc::clone(&self.control);
        let called = tokio::task::spawn_blocking(move || control.call(request)).await;
        called.unwrap_or_else(|error| {
            let message = format!("the request was not answered: {error}");
            Err(ApiError::new(ErrorCode::Internal, message, "see the mover's log"))
        })
    }
}

struct Answer(Result<Response, ApiError>);

impl IntoResponse for Answer {
    fn into_response(self) -> HttpResponse {
        match self.0 {
            Ok(response) => Json(response).into_response(),
            Err(error) => {
                let status = StatusCode::from_u16(error.code.status());
                (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(error)).into_response()
            }
        }
    }
}

fn bad_request(message: String) -> Answer {
    Answer(Err(ApiError::new(ErrorCode::BadRequest, message, "")))
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(|s| ask(s, Request::Status)))
        .route("/v1/groups", get(|s| ask(s, Request::GroupList)))
        .route("/v1/groups/{group}", get(of_group(|group| Request::GroupShow { group })))
        .route("/v1/groups/{group}/period", post(set_period))
        .route(
            "/v1/groups/{group}/apply/pause",
            post(of_group(|group| Request::ApplyPause { group })),
        )
        .route(
            "/v1/groups/{group}/apply/resume",
            post(of_group(|group| Request::ApplyResume { group })),
        )
        .route("/v1/groups/{group}/sets", get(set_list))
        .route("/v1/groups/{group}/sets/close", post(of_group(|group| Request::SetClose { group })))
        .route("/v1/groups/{group}/sets/{set}", get(set_show))
        .route("/v1/volumes", get(|s| ask(s, Request::VolumeList)))
        .route("/v1/volumes/map", get(|s| ask(s, Request::VolumeMap)))
        .route("/v1/cores", get(|s| ask(s, Request::CoreList)))
        .route("/v1/cores/map", get(|s| ask(s, Request::CoreMap)))
        .route("/v1/movers", get(|s| ask(s, Request::MoverList)))
        .route("/v1/assignment", get(|s| ask(s, Request::Assignment)).post(wish))
        .route("/v1/ledger", get(ledger))
        .route("/v1/events", get(events))
        .route("/v1/metrics", get(|s| ask(s, Request::Metrics)))
        .route("/v1/shutdown", post(shutdown))
        .route("/metrics", get(prometheus))
        .fallback(no_such_path)
        .layer(middleware::map_response(not_cached))
        .with_state(shared)
}

/// Everything here is as of now.
async fn not_cached(mut response: HttpResponse) -> HttpResponse {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

async fn no_such_path() -> Answer {
    let message = "there is no such path in this version of the API".to_owned();
    Answer(Err(ApiError::new(ErrorCode::NotFound, message, "paths begin with /v1/")))
}

async fn ask(State(shared): State<Shared>, request: Request) -> Answer {
    Answer(shared.call(request).await)
}

/// A handler for a request that names a group and nothing else.
fn of_group(
    request: fn(String) -> Request,
) -> impl Fn(State<Shared>, Segment<String>) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>
+ Clone
+ Send
+ Sync
+ 'static {
    move |state, Segment(group)| Box::pin(ask(state, request(group)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Period {
    period_ms: u64,
}

async fn set_period(
    state: State<Shared>,
    Segment(group): Segment<String>,
    body: Result<Json<Period>, JsonRejection>,
) -> Answer {
    let Period { period_ms } = match body {
        Ok(Json(period)) => period,
        Err(error) => return bad_request(error.body_text()),
    };
    let allowed = config::PERIOD_MS_MIN..=config::PERIOD_MS_MAX;
    if !allowed.contains(&period_ms) {
        return bad_request(format!(
            "a period of {period_ms} ms; allowed: {} to {} ms",
            allowed.start(),
            allowed.end()
        ));
    }
    ask(state, Request::GroupSetPeriod { group, period_ms }).await
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

impl Limit {
    fn get(&self) -> usize {
        self.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX)
    }
}

async fn set_list(
    state: State<Shared>,
    Segment(group): Segment<String>,
    query: Result<Query<Limit>, QueryRejection>,
) -> Answer {
    match query {
        Ok(Query(limit)) => ask(state, Request::SetList { group, limit: limit.get() }).await,
        Err(error) => bad_request(error.body_text()),
    }
}

async fn set_show(
    state: State<Shared>,
    Segment((group, set)): Segment<(String, String)>,
) -> Answer {
    match set.parse() {
        Ok(set) => ask(state, Request::SetShow { group, set }).await,
        Err(_) => bad_request(format!("{set:?} is not the number of a set")),
    }
}

#[derive(Deserialize)]
struct OfVolume {
    volume: String,
    limit: Option<usize>,
}

async fn ledger(state: State<Shared>, query: Result<Query<OfVolume>, QueryRejection>) -> Answer {
    match query {
        Ok(Query(OfVolume { volume, limit })) => {
            ask(state, Request::Ledger { volume, limit: Limit { limit }.get() }).await
        }
        Err(error) => bad_request(error.body_text()),
    }
}

#[derive(Deserialize)]
struct Since {
    since: Option<u64>,
    limit: Option<usize>,
    wait_ms: Option<u64>,
}

/// Answers as soon as there is an event, or with an empty list after `wait_ms`.
async fn events(
    State(shared): State<Shared>,
    query: Result<Query<Since>, QueryRejection>,
) -> Answer {
    let Since { since, limit, wait_ms } = match query {
        Ok(Query(query)) => query,
        Err(error) => return bad_request(error.body_text()),
    };
    let wait = Duration::from_millis(wait_ms.unwrap_or(0).min(WAIT_MS_MAX));
    let until = Instant::now() + wait;
    let request = Request::Events { since: since.unwrap_or(0), limit: Limit { limit }.get() };
    loop {
        let answer = shared.call(request.clone()).await;
        let empty = matches!(&answer, Ok(Response::Events(events)) if events.is_empty());
        if !empty || Instant::now() >= until || *shared.stopped.borrow() {
            return Answer(answer);
        }
        tokio::time::sleep(EVENTS_EVERY).await;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    #[serde(default)]
    drain: bool,
}

#[derive(Deserialize)]
struct Wished {
    #[serde(flatten)]
    wish: Wish,
    #[serde(default)]
    dry_run: bool,
}

async fn wish(state: State<Shared>, body: Result<Json<Wished>, JsonRejection>) -> Answer {
    match body {
        Ok(Json(Wished { wish, dry_run })) => ask(state, Request::Wish { wish, dry_run }).await,
        Err(error) => bad_request(error.body_text()),
    }
}

async fn shutdown(state: State<Shared>, body: Result<Json<Drain>, JsonRejection>) -> Answer {
    match body {
        Ok(Json(Drain { drain })) => ask(state, Request::Shutdown { drain }).await,
        Err(error) => bad_request(error.body_text()),
    }
}

async fn prometheus(State(shared): State<Shared>) -> HttpResponse {
    match shared.call(Request::Metrics).await {
        Ok(Response::Metrics(metrics)) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], exposition(&metrics)).into_response()
        }
        other => Answer(other).into_response(),
    }
}

/// Prometheus' text exposition format, version 0.0.4.
fn exposition(metrics: &[Metric]) -> String {
    use std::fmt::Write;
    let mut sorted: Vec<&Metric> = metrics.iter().collect();
    // All lines of one name must stand together.
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    let mut last = None;
    for metric in sorted {
        let name = &metric.name;
        if last != Some(name) {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(text, "# TYPE setline_{name} {kind}");
            last = Some(name);
        }
        let labels: Vec<String> =
            metric.labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(text, "setline_{name}{labels} {}", metric.value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_follow_the_exposition_format() {
        let metric = |name: &str, core: &str, value| Metric {
            name: name.to_owned(),
            labels: vec![("core".to_owned(), core.to_owned())],
            value,
        };
        let plain = Metric { name: "epoch".to_owned(), labels: vec![], value: 3.0 };
        let metrics = [metric("updates_total", "0", 5.0), plain, metric("updates_total", "1", 7.5)];
        assert_eq!(
            exposition(&metrics),
            "# TYPE setline_epoch gauge\nsetline_epoch 3\n# TYPE setline_updates_total counter\n\
             setline_updates_total{core=\"0\"} 5\nsetline_updates_total{core=\"1\"} 7.5\n"
        );
    }
}
