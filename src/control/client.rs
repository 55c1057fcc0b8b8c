//! The API's other end, for the tools: blocking calls with a time limit.
//!
//! Every call makes its own connection, so a client survives restarts of the mover and holds
//! nothing open. What this module does not do: retry. Whoever calls knows whether that is right.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use super::model::{
    ApiError, AssignmentInfo, CoreInfo, Event, ExitCode, GroupStatus, LedgerEntry, Metric,
    MoverInfo, SetInfo, Status, VolumeInfo, VolumeMap, Wish,
};

/// Where a mover answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// The text names no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither the path of a socket nor HOST:PORT")]
pub struct BadTarget;

impl FromStr for Target {
    type Err = BadTarget;
    fn from_str(text: &str) -> Result<Self, BadTarget> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let (host, port) = text.rsplit_once(':').ok_or(BadTarget)?;
        let port: u16 = port.parse().map_err(|_| BadTarget)?;
        if host.is_empty() || port == 0 { Err(BadTarget) } else { Ok(Self::Tcp(text.to_owned())) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No mover answers there.
    #[error("{target}: no mover answers there: {error}")]
    Unreachable {
        /// Where.
        target: Target,
        /// What the system said.
        error: io::Error,
    },
    /// It did not answer in time.
    #[error("{target}: no answer within {} s", .limit.as_secs_f32())]
    Timeout {
        /// Where.
        target: Target,
        /// The limit.
        limit: Duration,
    },
    /// What answered is not a mover, or of another version.
    #[error("{target}: not an answer of this API: {found}")]
    Foreign {
        /// Where.
        target: Target,
        /// What was found.
        found: String,
    },
    /// The mover refused or failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// The exit code it becomes.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreachable { .. } | Self::Foreign { .. } => ExitCode::Unreachable,
            Self::Timeout { .. } => ExitCode::Timeout,
            Self::Api(error) => error.code.exit_code(),
        }
    }
}

/// A client of one mover. Used by one thread at a time.
#[derive(Debug)]
pub struct Client {
    target: Target,
    limit: Duration,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// A client of `target` whose calls take at most `limit`. Connects to nothing yet.
    ///
    /// # Errors
    /// The system gives no event queue.
    pub fn new(target: Target, limit: Duration) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { target, limit, runtime })
    }

    /// Where it calls.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How the mover is.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    /// All groups.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn groups(&self) -> Result<Vec<GroupStatus>, ClientError> {
        self.get("/v1/groups")
    }

    /// One group.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn group(&self, group: &str) -> Result<GroupStatus, ClientError> {
        self.get(&format!("/v1/groups/{}", encode(group)))
    }

    /// Changes the formation period (F2).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_period(&self, group: &str, period_ms: u64) -> Result<GroupStatus, ClientError> {
        let path = format!("/v1/groups/{}/period", encode(group));
        self.post(&path, &serde_json::json!({ "period_ms": period_ms }))
    }

    /// Stops applying sets at a boundary.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pause_apply(&self, group: &str) -> Result<GroupStatus, ClientError> {
        self.post(&format!("/v1/groups/{}/apply/pause", encode(group)), &serde_json::Value::Null)
    }

    /// Goes on applying.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn resume_apply(&self, group: &str) -> Result<GroupStatus, ClientError> {
        self.post(&format!("/v1/groups/{}/apply/resume", encode(group)), &serde_json::Value::Null)
    }

    /// The newest sets in existence, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn sets(&self, group: &str, limit: usize) -> Result<Vec<SetInfo>, ClientError> {
        self.get(&format!("/v1/groups/{}/sets?limit={limit}", encode(group)))
    }

    /// One set with its manifest.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set(&self, group: &str, set: u64) -> Result<SetInfo, ClientError> {
        self.get(&format!("/v1/groups/{}/sets/{set}", encode(group)))
    }

    /// Closes the open set now (F2).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn close_set(&self, group: &str) -> Result<SetInfo, ClientError> {
        self.post(&format!("/v1/groups/{}/sets/close", encode(group)), &serde_json::Value::Null)
    }

    /// All volumes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>, ClientError> {
        self.get("/v1/volumes")
    }

    /// The map volume → responsible mover.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn volume_map(&self) -> Result<VolumeMap, ClientError> {
        self.get("/v1/volumes/map")
    }

    /// The pollers and their load.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cores(&self) -> Result<Vec<CoreInfo>, ClientError> {
        self.get("/v1/cores")
    }

    /// Which volume is served by which core.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn core_map(&self) -> Result<VolumeMap, ClientError> {
        self.get("/v1/cores/map")
    }

    /// The movers of both sites.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn movers(&self) -> Result<Vec<MoverInfo>, ClientError> {
        self.get("/v1/movers")
    }

    /// Who is responsible for what, and what moves.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn assignment(&self) -> Result<AssignmentInfo, ClientError> {
        self.get("/v1/assignment")
    }

    /// Changes that, or only says what would follow.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wish(&self, wish: &Wish, dry_run: bool) -> Result<AssignmentInfo, ClientError> {
        let mut body = serde_json::to_value(wish).unwrap_or_default();
        body["dry_run"] = dry_run.into();
        self.post("/v1/assignment", &body)
    }

    /// Retained updates of a volume (G5), newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ledger(&self, volume: &str, limit: usize) -> Result<Vec<LedgerEntry>, ClientError> {
        self.get(&format!("/v1/ledger?volume={}&limit={limit}", encode(volume)))
    }

    /// Events after number `since`. Waits up to `wait` for one, which must be shorter than the
    /// client's time limit.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn events(&self, since: u64, wait: Duration) -> Result<Vec<Event>, ClientError> {
        self.get(&format!("/v1/events?since={since}&limit=1000&wait_ms={}", wait.as_millis()))
    }

    /// All counters.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn metrics(&self) -> Result<Vec<Metric>, ClientError> {
        self.get("/v1/metrics")
    }

    /// Stops the mover.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn shutdown(&self, drain: bool) -> Result<(), ClientError> {
        self.post("/v1/shutdown", &serde_json::json!({ "drain": drain }))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, String::new())
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, ClientError> {
        self.request(Method::POST, path, body.to_string())
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<T, ClientError> {
        let exchange = async {
            match &self.target {
                Target::Unix(socket) => {
                    let stream = tokio::net::UnixStream::connect(socket).await;
                    self.exchange(stream, method, path, body).await
                }
                Target::Tcp(address) => {
                    let stream = tokio::net::TcpStream::connect(address.as_str()).await;
                    self.exchange(stream, method, path, body).await
                }
            }
        };
        let limited = async { tokio::time::timeout(self.limit, exchange).await };
        let (status, bytes) = self.runtime.block_on(limited).map_err(|_| {
            ClientError::Timeout { target: self.target.clone(), limit: self.limit }
        })??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.foreign(error));
        }
        match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => Err(error.into()),
            Err(_) => Err(self.foreign(format!("HTTP status {status}"))),
        }
    }

    async fn exchange<S>(
        &self,
        stream: io::Result<S>,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = stream
            .map_err(|error| ClientError::Unreachable { target: self.target.clone(), error })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.foreign(error))?;
        // It ends with the sender; what goes wrong there shows in the answer.
        let driver = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "setline")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.foreign(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.lost(&error))?;
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|error| self.lost(&error))?;
        driver.abort();
        Ok((status, bytes.to_bytes()))
    }

    fn foreign(&self, found: impl fmt::Display) -> ClientError {
        ClientError::Foreign { target: self.target.clone(), found: found.to_string() }
    }

    /// The connection ended before the answer did: the mover stopped.
    fn lost(&self, error: &hyper::Error) -> ClientError {
        let error = io::Error::new(io::ErrorKind::ConnectionReset, error.to_string());
        ClientError::Unreachable { target: self.target.clone(), error }
    }
}

/// Percent-encodes all that is not unreserved (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
