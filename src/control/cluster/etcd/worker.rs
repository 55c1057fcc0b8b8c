//! The thread that speaks to etcd: one *session* after the other.
//!
//! A session connects, reads everything below the site's prefix, watches it from there, gets or keeps
//! the lease, and serves requests, until something fails or does not answer in time. Then the
//! control thread is told, and after a pause the next session begins. Nothing is assumed to have
//! survived: everything is read anew.
//!
//! The lease's end is counted from the moment a grant or keep-alive was sent. When it comes without a
//! renewal, the lease is given up here though etcd may still hold it; it is revoked before a new one
//! is asked for, so that a leadership that hung on it ends, too.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, LeaseKeepAliveStream, LeaseKeeper,
    PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::site::{Keys, Seen, leader_value, member_value};
use super::{LeaseClock, Request};
use crate::config::Cluster;
use crate::control::cluster::{ClusterError, Event, Me, Revision, Swap};

/// How often deadlines are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pause before the next session, and the longest one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Pause while the control thread takes no events.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Why a session ended.
enum End {
    /// Something failed, or did not answer.
    Failed(String),
    /// The mover leaves, or nobody listens any more.
    Over,
}

impl From<etcd_client::Error> for End {
    fn from(error: etcd_client::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

type Step<T> = Result<T, End>;

/// What the thread owns.
pub(super) struct Worker {
    endpoints: Vec<String>,
    ttl: Duration,
    request_max: Duration,
    me: Me,
    keys: Keys,
    requests: mpsc::Receiver<Request>,
    events: Sender<Event>,
    clock: Arc<LeaseClock>,
    lease: Option<i64>,
    /// A lease that ended here and may not have ended there.
    former: Option<i64>,
    wants_to_lead: bool,
    seen: Seen,
    available: bool,
    /// The latest read that was asked for, and the version of the record that answers it; none while
    /// that is not known.
    read: Option<(u64, Option<Revision>)>,
}

/// A session's connections.
struct Session {
    client: Client,
    watch: WatchStream,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    /// When the keep-alive that is not answered yet was sent.
    awaited: Option<Instant>,
    sent_at: Instant,
}

impl Worker {
    pub(super) fn new(
        config: &Cluster,
        me: Me,
        requests: mpsc::Receiver<Request>,
        events: Sender<Event>,
        clock: Arc<LeaseClock>,
    ) -> Self {
        Self {
            endpoints: config.endpoints.clone(),
            ttl: Duration::from_millis(config.lease_ms.into()),
            request_max: Duration::from_millis(config.request_ms_max.into()),
            keys: Keys::of(&me),
            me,
            requests,
            events,
            clock,
            lease: None,
            former: None,
            wants_to_lead: false,
            seen: Seen::default(),
            // So that the first failure is told.
            available: true,
            read: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut pause = PAUSE.0;
        loop {
            let why = match self.session().await {
                Ok(()) | Err(End::Over) => return,
                Err(End::Failed(why)) => why,
            };
            if std::mem::replace(&mut self.available, false) {
                tracing::warn!(%why, "etcd does not answer");
                pause = PAUSE.0;
                if self.tell(Event::Unavailable(why.clone())).await.is_err() {
                    return;
                }
            }
            if self.rest(pause, &why).await.is_err() {
                return;
            }
            pause = (2 * pause).min(PAUSE.1);
        }
    }

    /// Waits between two sessions; what is asked for meanwhile is refused.
    async fn rest(&mut self, pause: Duration, why: &str) -> Step<()> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.watch_lease().await?;
            let asked = tokio::time::timeout(LOOK_EVERY.min(pause), self.requests.recv()).await;
            match asked {
                Err(_elapsed) => {}
                Ok(Some(Request::Swap(swap))) => {
                    let error = ClusterError::Unavailable(why.to_owned());
                    self.tell(Event::Swapped(swap.ticket, Err(error))).await?;
                }
                Ok(Some(Request::Campaign(wanted))) => self.wants_to_lead = wanted,
                // Written when there is a connection again.
                Ok(Some(Request::Whole(epoch))) => self.me.alive.whole = Some(epoch.0),
                Ok(Some(Request::Leaving)) => self.me.alive.leaving = true,
                // Answered by what is read then.
                Ok(Some(Request::Read(number))) => self.read = Some((number, None)),
                // The lease cannot be given back now: it runs out.
                Ok(Some(Request::Leave) | None) => return Err(End::Over),
            }
        }
        Ok(())
    }

    async fn session(&mut self) -> Step<()> {
        let mut session = self.open().await?;
        if !std::mem::replace(&mut self.available, true) {
            tracing::info!("etcd answers");
        }
        self.tell(Event::Available).await?;
        self.lead(&mut session.client).await?;
        // First in turn: a stream that never pauses must not keep the lease from being renewed.
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = look.tick() => self.keep_alive(&mut session).await?,
                message = session.watch.message() => {
                    let Some(message) = message? else { return Err(ended("the watch")) };
                    if message.canceled() {
                        // Compacted away: everything is read anew.
                        return Err(ended("the watch"));
                    }
                    let events = self.seen.changed(&self.keys, message.events());
                    self.tell_all(events).await?;
                    self.tell_read().await?;
                    self.lead(&mut session.client).await?;
                }
                answer = session.answers.message() => {
                    let Some(answer) = answer? else { return Err(ended("the lease's stream")) };
                    if answer.ttl() <= 0 {
                        self.lose_lease().await?;
                        return Err(ended("the lease"));
                    }
                    if let Some(sent) = session.awaited.take() {
                        self.extend(sent, Duration::from_secs(answer.ttl() as u64));
                    }
                }
                request = self.requests.recv() => match request {
                    Some(Request::Swap(swap)) => self.swap(&mut session.client, swap).await?,
                    Some(Request::Campaign(wanted)) => {
                        self.wants_to_lead = wanted;
                        if wanted {
                            self.lead(&mut session.client).await?;
                        } else {
                            self.resign(&mut session.client).await?;
                        }
                    }
                    Some(Request::Whole(epoch)) => {
                        self.me.alive.whole = Some(epoch.0);
                        if let Some(lease) = self.lease {
                            self.write_member(&mut session.client, lease).await?;
                        }
                    }
                    Some(Request::Leaving) => {
                        self.me.alive.leaving = true;
                        if let Some(lease) = self.lease {
                            self.write_member(&mut session.client, lease).await?;
                        }
                    }
                    Some(Request::Read(number)) => self.read(&mut session.client, number).await?,
                    Some(Request::Leave) => {
                        self.leave(&mut session.client).await;
                        return Err(End::Over);
                    }
                    None => return Err(End::Over),
                },
            }
        }
    }

    /// Connects, reads, watches, and has a lease.
    async fn open(&mut self) -> Step<Session> {
        let options = ConnectOptions::new().with_connect_timeout(self.request_max);
        let mut client = self.limit(Client::connect(&self.endpoints, Some(options))).await??;
        let prefix = self.keys.prefix.clone();
        let all = GetOptions::new().with_prefix();
        let found = self.limit(client.get(prefix.as_str(), Some(all))).await??;
        let Some(revision) = found.header().map(etcd_client::ResponseHeader::revision) else {
            return Err(ended("an answer without a revision"));
        };
        let events = self.seen.read(&self.keys, found.kvs());
        self.tell_all(events).await?;
        if let Some((_, version)) = &mut self.read {
            *version = Some(self.seen.revision());
        }
        self.tell_read().await?;
        let from = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let watch = self.limit(client.watch(prefix.as_str(), Some(from))).await??;
        self.watch_lease().await?;
        let id = self.have_lease(&mut client).await?;
        self.write_member(&mut client, id).await?;
        let sent_at = Instant::now();
        let kept = self.limit(client.lease_keep_alive(id)).await?;
        let (keeper, answers) = match kept {
            Ok(kept) => kept,
            Err(etcd_client::Error::LeaseKeepAliveError(why)) => {
                self.lose_lease().await?;
                return Err(End::Failed(why));
            }
            Err(other) => return Err(other.into()),
        };
        self.extend(sent_at, self.ttl);
        Ok(Session { client, watch, keeper, answers, awaited: None, sent_at })
    }

    /// The lease there is, or a new one.
    async fn have_lease(&mut self, client: &mut Client) -> Step<i64> {
        if let Some(former) = self.former {
            // What hung on it goes with it. It may have run out: that is an error to etcd.
            let _ = self.limit(client.lease_revoke(former)).await?;
            self.former = None;
        }
        if let Some(id) = self.lease {
            return Ok(id);
        }
        let sent_at = Instant::now();
        let seconds = self.ttl.as_secs() as i64;
        let granted = self.limit(client.lease_grant(seconds, None)).await??;
        let id = granted.id();
        self.lease = Some(id);
        self.extend(sent_at, Duration::from_secs(granted.ttl().max(0) as u64));
        Ok(id)
    }

    /// The mover's own key.
    async fn write_member(&mut self, client: &mut Client, lease: i64) -> Step<()> {
        let (key, value) = (self.keys.member.clone(), member_value(&self.me));
        let with_lease = PutOptions::new().with_lease(lease);
        self.limit(client.put(key, value, Some(with_lease))).await??;
        Ok(())
    }

    /// The lease holds for `ttl` from `sent` on, and never longer than what was asked for.
    fn extend(&mut self, sent: Instant, ttl: Duration) {
        self.clock.set(Some(sent + ttl.min(self.ttl)));
    }

    /// Gives the lease up when its time is over.
    async fn watch_lease(&mut self) -> Step<()> {
        let over = self.clock.get().is_some_and(|until| Instant::now() >= until);
        if over { self.lose_lease().await } else { Ok(()) }
    }

    async fn lose_lease(&mut self) -> Step<()> {
        self.clock.set(None);
        self.former = self.lease.take();
        match self.former {
            Some(_) => self.tell(Event::LeaseLost).await,
            None => Ok(()),
        }
    }

    async fn keep_alive(&mut self, session: &mut Session) -> Step<()> {
        self.watch_lease().await?;
        if self.lease.is_none() {
            return Err(ended("the lease"));
        }
        let now = Instant::now();
        match session.awaited {
            Some(sent) if now.duration_since(sent) > self.request_max => {
                Err(End::Failed("a keep-alive is not answered".to_owned()))
            }
            None if now.duration_since(session.sent_at) >= self.ttl / 3 => {
                session.sent_at = now;
                session.awaited = Some(now);
                Ok(self.limit(session.keeper.keep_alive()).await??)
            }
            _ => Ok(()),
        }
    }

    /// Takes the lead if it is wanted and nobody has it.
    async fn lead(&mut self, client: &mut Client) -> Step<()> {
        let Some(lease) = self.lease.filter(|_| self.wants_to_lead) else { return Ok(()) };
        if self.seen.leader.is_some() {
            return Ok(());
        }
        let key = self.keys.leader.as_str();
        let put = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key, leader_value(&self.me), Some(put))]);
        // Who won is told by the watch.
        self.limit(client.txn(txn)).await??;
        Ok(())
    }

    /// The term of this life's leadership.
    fn my_term(&self) -> Option<u64> {
        let leader = self.seen.leader.as_ref()?;
        let mine = leader.mover == self.me.mover && leader.incarnation == self.me.alive.incarnation;
        let holds = self.clock.get().is_some_and(|until| Instant::now() < until);
        (mine && holds).then_some(leader.term)
    }

    async fn resign(&mut self, client: &mut Client) -> Step<()> {
        let Some(term) = self.my_term() else { return Ok(()) };
        let key = self.keys.leader.as_str();
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, term as i64)])
            .and_then([TxnOp::delete(key, None)]);
        self.limit(client.txn(txn)).await??;
        Ok(())
    }

    async fn swap(&mut self, client: &mut Client, swap: Swap) -> Step<()> {
        let (record, leader) = (self.keys.record.as_str(), self.keys.leader.as_str());
        let expected = swap.expected.0 as i64;
        let mut only_if = vec![Compare::mod_revision(record, CompareOp::Equal, expected)];
        if swap.as_leader {
            let Some(term) = self.my_term() else {
                return self.tell(Event::Swapped(swap.ticket, Err(ClusterError::NotLeader))).await;
            };
            only_if.push(Compare::create_revision(leader, CompareOp::Equal, term as i64));
        }
        let put = TxnOp::put(record, swap.record.to_json(), None);
        let txn = Txn::new().when(only_if).and_then([put]);
        let done = match self.limit(client.txn(txn)).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(End::Failed(why)) => Err(why),
            Err(End::Over) => return Err(End::Over),
        };
        match done {
            Ok(done) => {
                let result = match (done.succeeded(), done.header()) {
                    (true, Some(header)) => Ok(Revision(header.revision() as u64)),
                    _ => Err(ClusterError::Conflict),
                };
                self.tell(Event::Swapped(swap.ticket, result)).await
            }
            Err(why) => {
                let error = ClusterError::Unknown(why.clone());
                self.tell(Event::Swapped(swap.ticket, Err(error))).await?;
                Err(End::Failed(why))
            }
        }
    }

    /// Reads the record as it is now (linearizable, as etcd's reads are). When it is newer than what the
    /// watch has brought, it is told when that has come, too: the record is told in one order only.
    async fn read(&mut self, client: &mut Client, number: u64) -> Step<()> {
        self.read = Some((number, None));
        let only = GetOptions::new().with_keys_only();
        let found = self.limit(client.get(self.keys.record.as_str(), Some(only))).await??;
        let version = found.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision);
        self.read = Some((number, Some(Revision(version as u64))));
        self.tell_read().await
    }

    /// Answers a read once the record that was told is as new as what was read.
    async fn tell_read(&mut self) -> Step<()> {
        match self.read {
            Some((number, Some(version))) if self.seen.revision() >= version => {
                self.read = None;
                self.tell(Event::Read(number)).await
            }
            _ => Ok(()),
        }
    }

    /// Gives everything back that hangs on the lease: the mover's key, and its leadership.
    async fn leave(&mut self, client: &mut Client) {
        if let Some(lease) = self.lease.take() {
            self.clock.set(None);
            if !matches!(self.limit(client.lease_revoke(lease)).await, Ok(Ok(_))) {
                tracing::warn!("the lease could not be given back; it runs out");
            }
        }
    }

    /// At most as long as one request may take.
    async fn limit<T>(&self, work: impl Future<Output = T>) -> Step<T> {
        match tokio::time::timeout(self.request_max, work).await {
            Ok(done) => Ok(done),
            Err(_elapsed) => {
                let ms = self.request_max.as_millis();
                Err(End::Failed(format!("no answer within {ms} ms")))
            }
        }
    }

    async fn tell_all(&mut self, events: Vec<Event>) -> Step<()> {
        for event in events {
            self.tell(event).await?;
        }
        Ok(())
    }

    /// Tells the control thread, waiting for room.
    async fn tell(&mut self, mut event: Event) -> Step<()> {
        loop {
            match self.events.try_send(event) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(End::Over),
                Err(TrySendError::Full(back)) => event = back,
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}

fn ended(what: &str) -> End {
    End::Failed(format!("{what} has ended"))
}
