//! The common timer (G8): one clock for all primary movers, over the network.
//!
//! The coordinator has it. A mover asks for the time, and stamps by the answer until the next one comes:
//! an answer is good for a batch of stamps, of whatever size. By its own counter the mover knows when it
//! asked and when it was answered; the coordinator read the timer in between (Cristian's method). So what
//! it knows is as good as half a round trip, and gets worse by the drift of two counters until it
//! asks again. When no answer comes stamps go on, with bounds that grow.
//!
//! [`Timer`] is a mover's part in it, at its poller 0.
//!
//! # Times of turns
//!
//! A poller reads its counter once per turn, at the beginning. A message that comes in a turn came later
//! than the time that the turn has. Therefore what comes is only noted, and dated when a turn follows
//! whose time is later: a time in an answer is never of before the ask, and an answer never counts as
//! come before it was given.
//!
//! # Other coordinators
//!
//! The timer never goes back, whoever has it. Everybody who asks says the latest that the timer can
//! be, as far as he knows. A new coordinator answers when all members have asked, and begins with the latest
//! that any of them named. A member that has entered an epoch with another coordinator, or whose coordinator
//! came up with a new memory, does not believe any more what it knew: from then on, until
//! it is answered, its stamps have errors that nobody knows. So all that was stamped with a bound by the
//! former timer was stamped before anything is by the new one.
//!
//! Where none of the members knows the timer it begins with the coordinator's system clock. Answers are
//! *firm*, and stamps have bounds, once all members have said that they know the timer: whichever of them
//! is left when others fail can then go on with it. [`Timer::is_settled`] says that this one can.

use super::command::Command;
use super::membership::SiteRecord;
use super::message::Message;
use super::sabotage::Sabotage;
use super::time::{Bounds, Course, Line, drift_ns};
use super::types::{Epoch, MoverId, Nanos, ShardId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// What a mover's part is told at launch.
#[derive(Clone, Debug)]
pub struct TimerConfig {
    /// The mover's poller 0.
    pub me: ShardId,
    /// The shard that has the timer.
    pub coordinator: ShardId,
    /// The membership epoch.
    pub epoch: Epoch,
    /// The movers that ask.
    pub members: Vec<MoverId>,
    /// Nanoseconds since the Unix epoch at time 0 of the mover's monotonic clock.
    pub unix_offset_ns: u64,
    /// Between an answer and the next ask, nanoseconds.
    pub ask_ns: u64,
    /// See [`Course::new`].
    pub bend_ns: u64,
    /// A rule to break on purpose, in tests.
    pub sabotage: Sabotage,
}

/// Asks follow one another so many times as fast until answers are firm.
const HASTE: u64 = 16;

/// A mover's part in the common timer. Owned by its poller 0.
#[derive(Debug)]
pub struct Timer {
    me: ShardId,
    coordinator: ShardId,
    epoch: Epoch,
    ask_ns: u64,
    unix_offset_ns: u64,
    sabotage: Sabotage,
    course: Course,
    /// The line was changed since it was last taken.
    changed: bool,
    /// What was known before it was not believed any more.
    former: Option<Line>,
    /// The last answer was firm.
    settled: bool,
    /// When to ask; never while an ask is under way.
    ask_at: Nanos,
    /// The ask under way, named by its time.
    asked: Option<Nanos>,
    /// The answer that came, and in which turn.
    answer: Option<(Nanos, Answer)>,
    /// The timer, where this mover's shard is the coordinator.
    serves: Option<Serving>,
    commands: VecDeque<Command>,
    stale_epoch: u64,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    asked: Nanos,
    time_ns: u64,
    firm: bool,
}

/// The timer itself.
#[derive(Debug)]
struct Serving {
    /// By member: the latest that the timer can be, as it said last, and in which turn it did.
    said: Vec<(MoverId, Option<(Nanos, u64)>)>,
    /// When it began, and what it showed there.
    begun: Option<(Nanos, u64)>,
    firm: bool,
    /// Asks to be answered: who asked, when by the asker's counter, and in which turn it came.
    asks: VecDeque<(ShardId, u64, Nanos)>,
}

impl Serving {
    fn new(members: &[MoverId]) -> Self {
        let said = members.iter().map(|member| (*member, None)).collect();
        Self { said, begun: None, firm: false, asks: VecDeque::new() }
    }

    /// Begins when all have asked, and is firm when all know it.
    fn advance(&mut self, now: Nanos, unix_ns: u64) {
        if self.begun.is_none() {
            let mut latest = 0;
            for (_, said) in &self.said {
                let Some((at, latest_ns)) = *said else { return };
                // It went on since it was said.
                let gone_by = if latest_ns == 0 { 0 } else { now.since(at) };
                latest = latest.max(latest_ns + gone_by);
            }
            self.begun = Some((now, if latest == 0 { unix_ns } else { latest }));
        }
        let knows = |(_, said): &(MoverId, Option<(Nanos, u64)>)| {
            said.is_some_and(|(_, latest_ns)| latest_ns != 0)
        };
        self.firm = self.firm || self.said.iter().all(knows);
    }
}

impl Timer {
    /// A mover's part at launch: it knows nothing of the time.
    #[must_use]
    pub fn new(config: &TimerConfig) -> Self {
        let serves = config.me == config.coordinator;
        Self {
            me: config.me,
            coordinator: config.coordinator,
            epoch: config.epoch,
            ask_ns: config.ask_ns,
            unix_offset_ns: config.unix_offset_ns,
            sabotage: config.sabotage,
            course: Course::new(config.bend_ns, config.sabotage),
            changed: false,
            former: None,
            settled: false,
            ask_at: Nanos(0),
            asked: None,
            answer: None,
            serves: serves.then(|| Serving::new(&config.members)),
            commands: VecDeque::new(),
            stale_epoch: 0,
        }
    }

    /// The line to stamp by, if it is another one than at the last call.
    #[inline]
    pub fn take_line(&mut self) -> Option<Line> {
        if !core::mem::take(&mut self.changed) {
            return None;
        }
        self.course.line()
    }

    /// The line to stamp by; none before the first answer.
    #[must_use]
    pub fn line(&self) -> Option<Line> {
        self.course.line()
    }

    /// Whether this mover could go on with the timer if no other were left.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Where this mover has the timer, once it has begun: when, by the mover's clock, and what it showed
    /// there.
    #[must_use]
    pub fn serves(&self) -> Option<(Nanos, u64)> {
        self.serves.as_ref()?.begun
    }

    /// Messages refused because of their epoch.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.stale_epoch
    }

    /// Enters the epoch of `record`.
    pub fn enter(&mut self, record: &SiteRecord) {
        // Who coordinates does so for as long as he is a member.
        let same = record.coordinator == self.coordinator
            && !record.left_since(record.coordinator.mover, self.epoch);
        self.epoch = record.epoch;
        self.coordinator = record.coordinator;
        self.serves = match self.serves.take() {
            Some(mut serving) if same => {
                serving.asks.clear();
                let known = core::mem::take(&mut serving.said);
                let said = |member: &MoverId| {
                    let known = known.iter().find(|(known, _)| known == member);
                    (*member, known.and_then(|(_, said)| *said))
                };
                serving.said = record.members.iter().map(said).collect();
                Some(serving)
            }
            _ => (record.coordinator == self.me).then(|| Serving::new(&record.members)),
        };
        if !same && !self.sabotage.is(Sabotage::TrustOldTimer) {
            self.doubt();
        }
        self.ask_anew();
    }

    /// The link to `peer` is up with a new memory at the other end.
    pub fn handle_peer_up(&mut self, peer: ShardId) {
        if let Some(serving) = &mut self.serves {
            // Nobody waits for these answers.
            serving.asks.retain(|(from, ..)| *from != peer);
        } else if peer == self.coordinator {
            self.doubt();
            self.ask_anew();
        }
    }

    /// What was known of the timer is believed no more.
    fn doubt(&mut self) {
        if let Some(line) = self.course.line().filter(Line::is_bounded) {
            self.former = Some(line);
            self.course.doubt();
            self.changed = true;
        }
        self.settled = false;
    }

    /// What is under way is lost, or of no use.
    fn ask_anew(&mut self) {
        (self.asked, self.answer) = (None, None);
        self.ask_at = Nanos(0);
    }

    /// The latest that the timer can be, as far as this mover knows; 0 when it knows nothing.
    fn latest_ns(&self, now: Nanos) -> u64 {
        let line = self.course.line().filter(Line::is_bounded).or(self.former);
        line.and_then(|line| line.bounds(now)).map_or(0, |bounds| bounds.latest_ns)
    }

    /// A message of the timer from `from`, sent in `epoch`.
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, epoch: Epoch, message: &Message) {
        if epoch != self.epoch {
            self.stale_epoch += 1;
            return;
        }
        match *message {
            Message::TimeAsk { asked, latest_ns } => {
                let Some(serving) = &mut self.serves else { return };
                let member = serving.said.iter_mut().find(|(mover, _)| *mover == from.mover);
                if let Some((_, said)) = member {
                    *said = Some((now, latest_ns));
                    serving.asks.push_back((from, asked, now));
                }
            }
            Message::TimeAnswer { asked, time_ns, firm } if self.asked == Some(Nanos(asked)) => {
                self.asked = None;
                self.answer = Some((now, Answer { asked: Nanos(asked), time_ns, firm }));
            }
            _ => {}
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Nanos {
        // What came in this turn is due in the next.
        let answer = self.answer.map_or(Nanos::NEVER, |(came, _)| came.after(1));
        let serving = self.serves.as_ref().filter(|serving| {
            serving.begun.is_some() || serving.said.iter().all(|(_, said)| said.is_some())
        });
        let ask = serving.and_then(|serving| serving.asks.front());
        let ask = ask.map_or(Nanos::NEVER, |(_, _, came)| came.after(1));
        self.ask_at.min(answer).min(ask)
    }

    /// Does what is due.
    #[inline]
    pub fn handle_timeout(&mut self, now: Nanos) {
        if self.next_timeout() <= now {
            self.serve(now);
            self.take_answer(now);
            self.ask(now);
        }
    }

    fn serve(&mut self, now: Nanos) {
        let Some(serving) = &mut self.serves else { return };
        serving.advance(now, self.unix_offset_ns + now.0);
        let Some((at, began_ns)) = serving.begun else { return };
        let (time_ns, firm) = (began_ns + now.since(at), serving.firm);
        while let Some((to, asked, _)) = serving.asks.pop_front_if(|(.., came)| *came < now) {
            let message = Message::TimeAnswer { asked, time_ns, firm };
            self.commands.push_back(Command::Send { to, message });
        }
    }

    fn take_answer(&mut self, now: Nanos) {
        let Some((came, Answer { asked, time_ns, firm })) = self.answer else { return };
        if came >= now {
            return;
        }
        self.answer = None;
        // It was read at some moment since the ask. The counter here may be slow.
        let gone_by = now.since(asked);
        let mut latest_ns = time_ns + gone_by + drift_ns(gone_by);
        if self.sabotage.is(Sabotage::RoundTripIgnored) {
            latest_ns = time_ns;
        }
        self.course.narrow(now, Bounds { earliest_ns: time_ns, latest_ns });
        self.changed = true;
        self.settled = firm;
        if firm {
            self.former = None;
        } else {
            self.doubt();
        }
        self.ask_at = now.after(if firm { self.ask_ns } else { self.ask_ns / HASTE });
    }

    fn ask(&mut self, now: Nanos) {
        if self.ask_at > now {
            return;
        }
        (self.asked, self.ask_at) = (Some(now), Nanos::NEVER);
        let message = Message::TimeAsk { asked: now.0, latest_ns: self.latest_ns(now) };
        self.commands.push_back(Command::Send { to: self.coordinator, message });
    }

    /// The next thing to do, in order.
    #[inline]
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const E: Epoch = Epoch(4);
    const A: ShardId = ShardId::new(1, 0);
    const B: ShardId = ShardId::new(2, 0);
    const MS: u64 = 1_000_000;
    /// The coordinator's Unix time at 0 of its clock; the other mover's is off by an hour.
    const UNIX: u64 = 1_795_000_000_000_000_000;
    const HOUR: u64 = 3_600_000_000_000;

    fn timer(me: ShardId, coordinator: ShardId) -> Timer {
        Timer::new(&TimerConfig {
            me,
            coordinator,
            epoch: E,
            members: vec![A.mover, B.mover],
            unix_offset_ns: if me == A { UNIX } else { UNIX - HOUR },
            ask_ns: 10 * MS,
            bend_ns: MS,
            sabotage: Sabotage::None,
        })
    }

    fn record(epoch: u32, coordinator: ShardId, members: &[ShardId]) -> SiteRecord {
        SiteRecord {
            epoch: Epoch(epoch),
            map_version: crate::proto::types::MapVersion(1),
            members: members.iter().map(|shard| shard.mover).collect(),
            since: members.iter().map(|_| E).collect(),
            coordinator,
            owners: Vec::new(),
            moved: Vec::new(),
            spells: Vec::new(),
            lost: Vec::new(),
            plan: None,
        }
    }

    /// What a timer sends in the turn at `now`.
    fn turn(timer: &mut Timer, now: u64) -> Vec<(ShardId, Message)> {
        timer.handle_timeout(Nanos(now));
        let sent = core::iter::from_fn(|| timer.poll_command());
        let sent = sent.map(|command| match command {
            Command::Send { to, message } => (to, message),
            other => panic!("{other:?}"),
        });
        sent.collect()
    }

    /// Both movers go on, `delay` for each message, until `until`; whether answers reach B.
    fn run(a: &mut Timer, b: &mut Timer, from: u64, until: u64, delay: u64, heard: bool) {
        let mut under_way: Vec<(u64, ShardId, ShardId, Message)> = Vec::new();
        for now in (from..until).step_by(1_000) {
            for (at, source, to, message) in core::mem::take(&mut under_way) {
                if at > now {
                    under_way.push((at, source, to, message));
                } else if to == A {
                    a.handle_message(Nanos(now), source, a.epoch, &message);
                } else if heard {
                    b.handle_message(Nanos(now), source, b.epoch, &message);
                }
            }
            for (me, sent) in [(A, turn(a, now)), (B, turn(b, now))] {
                let sent = sent.into_iter();
                under_way.extend(sent.map(|(to, message)| {
                    let delay = if to == me { 0 } else { delay };
                    (now + delay, me, to, message)
                }));
            }
        }
    }

    #[test]
    fn all_are_answered_once_all_have_asked_and_believe_it_once_all_know() {
        let (mut a, mut b) = (timer(A, A), timer(B, A));
        assert!(matches!(turn(&mut a, 1_000)[..], [(A, Message::TimeAsk { latest_ns: 0, .. })]));
        let ask = turn(&mut b, 1_000);
        let [(A, Message::TimeAsk { asked: 1_000, latest_ns: 0 })] = ask[..] else {
            panic!("{ask:?}")
        };
        let own = Message::TimeAsk { asked: 1_000, latest_ns: 0 };
        a.handle_message(Nanos(1_000), A, E, &own);
        assert_eq!(turn(&mut a, 2_000), [], "B has not asked");
        a.handle_message(Nanos(3_000), B, E, &ask[0].1);
        let answer = |at: u64| {
            let time_ns = UNIX + at;
            Message::TimeAnswer { asked: 1_000, time_ns, firm: false }
        };
        assert_eq!(turn(&mut a, 3_000), [(A, answer(3_000))], "B's came in this turn");
        a.handle_message(Nanos(3_000), A, E, &answer(3_000));
        let answer = answer(4_000);
        assert_eq!(turn(&mut a, 4_000), [(B, answer.clone())]);
        b.handle_message(Nanos(6_000), A, E, &answer);
        turn(&mut b, 6_000);
        assert_eq!(b.line(), None, "it came in this turn");
        turn(&mut b, 7_000);
        assert!(b.line().is_some_and(|line| !line.is_bounded()) && !b.is_settled());
        run(&mut a, &mut b, 8_000, 5 * MS, 10_000, true);
        assert!(a.is_settled() && b.is_settled());
        let stamp = b.line().unwrap().stamp(Nanos(5 * MS));
        let off = stamp.time_ns.abs_diff(UNIX + 5 * MS);
        assert!(off <= u64::from(stamp.error_ns) && stamp.error_ns < 30_000, "{stamp:?} {off}");
    }

    #[test]
    fn without_answers_the_bound_grows_and_stamps_go_on() {
        let (mut a, mut b) = (timer(A, A), timer(B, A));
        run(&mut a, &mut b, 1_000, 20 * MS, 10_000, true);
        let before = b.line().unwrap().stamp(Nanos(20 * MS));
        run(&mut a, &mut b, 20 * MS, 200 * MS, 10_000, false);
        let after = b.line().unwrap().stamp(Nanos(200 * MS));
        assert!(after.time_ns > before.time_ns + 170 * MS);
        assert!(after.error_ns > before.error_ns + 40_000, "{before:?} {after:?}");
        assert!(b.is_settled(), "it can still go on with the timer");
        assert_eq!(turn(&mut b, 500 * MS), [], "the ask is under way: the link repeats it");
        b.handle_peer_up(A);
        assert!(!b.line().unwrap().is_bounded(), "another life: not the timer that it knew");
        assert!(matches!(
            turn(&mut b, 501 * MS)[..],
            [(A, Message::TimeAsk { latest_ns: 1.., .. })]
        ));
    }

    #[test]
    fn another_coordinator_goes_on_where_the_former_one_was() {
        let (mut a, mut b) = (timer(A, A), timer(B, A));
        run(&mut a, &mut b, 1_000, 20 * MS, 10_000, true);
        let shown = b.line().unwrap().shows(Nanos(20 * MS));
        b.enter(&record(5, B, &[B]));
        assert_eq!(b.line().unwrap().stamp(Nanos(20 * MS)).error_ns, u32::MAX, "not answered yet");
        // A goes on by itself and knows nothing of it: its answers are of another epoch.
        let answer = Message::TimeAnswer { asked: 0, time_ns: 1, firm: true };
        b.handle_message(Nanos(20 * MS), A, E, &answer);
        assert_eq!(b.refused(), 1);
        run(&mut a, &mut b, 20 * MS, 40 * MS, 0, true);
        let (_, began) = b.serves().unwrap();
        // Its own system clock is an hour behind; the timer is not.
        assert!(began >= shown && began < shown + MS, "{began} {shown}");
        assert!(b.is_settled() && b.line().unwrap().is_bounded());
    }

    #[test]
    fn an_epoch_with_the_same_coordinator_changes_nothing_but_the_asks() {
        let (mut a, mut b) = (timer(A, A), timer(B, A));
        run(&mut a, &mut b, 1_000, 20 * MS, 10_000, true);
        let began = a.serves();
        for timer in [&mut a, &mut b] {
            timer.enter(&record(5, A, &[A, B]));
        }
        assert_eq!(a.serves(), began);
        assert!(b.is_settled() && b.line().unwrap().is_bounded());
        assert!(matches!(turn(&mut b, 20 * MS)[..], [(A, Message::TimeAsk { .. })]), "at once");
    }
}
