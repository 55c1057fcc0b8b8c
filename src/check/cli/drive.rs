//! What a run in the foreground needs: a clock, an end, signals, idling, progress.

use super::Failure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Turns without anything to do before the thread gives way.
const IDLE_TURNS: u32 = 200;

/// What to do when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Idle {
    /// Poll on: lowest latency, a whole core
    Spin,
    /// Offer the core to others
    Yield,
    /// Sleep 50 µs
    Sleep,
}

/// How to show progress, on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Progress {
    /// A line that renews itself, on a terminal; otherwise nothing
    Auto,
    /// Nothing
    None,
    /// One JSON object per second and line
    Json,
}

/// When and how a run goes on.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Run")]
pub(super) struct DriveArgs {
    /// Stop after so many seconds; 0 runs until SIGINT or SIGTERM
    #[arg(long, default_value_t = 10.0)]
    pub(super) seconds: f64,
    /// After the stop, wait so long for what is in flight
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub(super) grace: f64,
    /// What the polling thread does when idle
    #[arg(long, value_enum, default_value_t = Idle::Yield)]
    pub(super) idle: Idle,
    /// How to show progress on standard error
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    pub(super) progress: Progress,
}

/// The run: time, stop, idling, progress.
#[derive(Debug)]
pub(super) struct Drive {
    start: Instant,
    start_unix_ns: u64,
    stop: Arc<AtomicBool>,
    stop_at_ns: Option<u64>,
    grace_ns: u64,
    deadline_ns: Option<u64>,
    idle: Idle,
    idle_turns: u32,
    progress: Progress,
    bar: ProgressBar,
    next_progress_ns: u64,
}

impl Drive {
    /// Starts the clock and takes SIGINT and SIGTERM: the first stops the run in order, a
    /// second one ends the process at once.
    pub(super) fn start(args: &DriveArgs) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // In this order: at the first signal the flag is not set yet.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
                .map_err(|error| Failure::input(format!("signal handler: {error}")))?;
        }
        let ns = |seconds: f64| Duration::try_from_secs_f64(seconds).map(|d| d.as_nanos() as u64);
        let (seconds, grace_ns) = match (ns(args.seconds), ns(args.grace)) {
            (Ok(seconds), Ok(grace)) => (seconds, grace),
            _ => return Err(Failure::usage("--seconds and --grace: 0 or more")),
        };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_unix_ns = unix.as_nanos() as u64;
        let bar = match args.progress {
            Progress::Auto if std::io::stderr().is_terminal() => {
                let style = ProgressStyle::with_template("{spinner} {msg}");
                ProgressBar::new_spinner().with_style(style.map_err(Failure::input)?)
            }
            _ => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        };
        Ok(Self {
            start: Instant::now(),
            start_unix_ns,
            stop,
            stop_at_ns: (seconds > 0).then_some(start_unix_ns + seconds),
            grace_ns,
            deadline_ns: None,
            idle: args.idle,
            idle_turns: 0,
            progress: args.progress,
            bar,
            next_progress_ns: start_unix_ns + 1_000_000_000,
        })
    }

    /// Nanoseconds since 1970; never goes back.
    pub(super) fn now_ns(&self) -> u64 {
        self.start_unix_ns + self.start.elapsed().as_nanos() as u64
    }

    /// Whether it is time to stop.
    pub(super) fn is_stopping(&mut self, now_ns: u64) -> bool {
        let stopping = self.stop.load(Ordering::Relaxed)
            || self.stop_at_ns.is_some_and(|stop_at_ns| now_ns >= stop_at_ns)
            || self.deadline_ns.is_some();
        if stopping {
            self.deadline_ns.get_or_insert(now_ns + self.grace_ns);
        }
        stopping
    }

    /// Whether what is in flight has been waited for long enough.
    pub(super) fn is_overdue(&self, now_ns: u64) -> bool {
        self.deadline_ns.is_some_and(|deadline_ns| now_ns >= deadline_ns)
    }

    /// Idles if there was nothing to do for a while.
    pub(super) fn idle(&mut self, happened: bool) {
        if happened {
            self.idle_turns = 0;
            return;
        }
        self.idle_turns = self.idle_turns.saturating_add(1);
        if self.idle_turns < IDLE_TURNS {
            return std::hint::spin_loop();
        }
        match self.idle {
            Idle::Spin => std::hint::spin_loop(),
            Idle::Yield => std::thread::yield_now(),
            Idle::Sleep => std::thread::sleep(Duration::from_micros(50)),
        }
    }

    /// Once a second, shows where the run is: `line` for people, `json` for programs.
    pub(super) fn progress<T: serde::Serialize>(
        &mut self,
        now_ns: u64,
        facts: impl FnOnce() -> (String, T),
    ) {
        if now_ns < self.next_progress_ns || self.progress == Progress::None {
            return;
        }
        self.next_progress_ns = now_ns + 1_000_000_000;
        let (line, json) = facts();
        match self.progress {
            Progress::Json => {
                if let Ok(text) = serde_json::to_string(&json) {
                    // Progress that nobody takes is no reason to end the run.
                    let _ = writeln!(std::io::stderr(), "{text}");
                }
            }
            _ => {
                self.bar.set_message(line);
                self.bar.tick();
            }
        }
    }

    /// Takes the progress line away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// 64 bits that no other run has, from the system.
pub(super) fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|error| Failure::input(format!("/dev/urandom: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}
