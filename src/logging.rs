//! Log lines, on standard error.
//!
//! A thread of its own writes them, so that a slow terminal or pipe never holds
//! up the threads of raft. When its queue is full, lines are dropped and their
//! number is logged in their place.

use std::{
    any::Any,
    io::{self, BufWriter, Write},
    panic::PanicHookInfo,
    sync::Arc,
};

use parking_lot::Mutex;
use slog::{Drain, Level, LevelFilter, Logger, crit, o};
use slog_async::{Async, AsyncGuard, OverflowStrategy};
use slog_json::Json;
use slog_term::{FullFormat, PlainSyncDecorator};
use time::OffsetDateTime;

use crate::config::LogFormat;

/// Lines that may wait to be written: a burst of a start or of an election, at
/// well under a kilobyte each.
const QUEUED_LINES: usize = 4096;

/// Keeps the log going; dropping it writes what is still queued.
///
/// Loggers may outlive it: what they are given then is lost.
#[must_use = "logging ends when this is dropped"]
pub struct LogGuard {
    // Shared with the panic hook, which flushes too. Taken once, never waited
    // for: see `flush`.
    thread: Arc<Mutex<Option<AsyncGuard>>>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush(&self.thread);
    }
}

/// Starts logging to standard error, lines of `level` and more severe ones.
///
/// From then on a panic anywhere in the process is logged as one line, and ends
/// it: a thread that is missing would break promises that the others still make.
pub fn start(format: LogFormat, level: Level) -> (Logger, LogGuard) {
    let (drain, thread) = match format {
        LogFormat::Text => queued(text(io::stderr())),
        LogFormat::Json => queued(json(io::stderr())),
    };
    let thread = Arc::new(Mutex::new(Some(thread)));
    let hook_thread = Arc::clone(&thread);
    std::panic::set_hook(Box::new(move |panic| {
        flush(&hook_thread);
        log_panic(format, panic);
        std::process::abort();
    }));
    let logger = Logger::root(LevelFilter::new(drain, level).ignore_res(), o!());
    (logger, LogGuard { thread })
}

fn queued<D>(drain: D) -> (Async, AsyncGuard)
where
    D: Drain + Send + 'static,
{
    // A closed standard error must not stop the node.
    Async::new(drain.ignore_res())
        .chan_size(QUEUED_LINES)
        .overflow_strategy(OverflowStrategy::DropAndReport)
        .thread_name("log".into())
        .build_with_guard()
}

/// Waits until everything queued is written, and ends the log's thread.
///
/// Two threads may come here at once when both panic: the second does not wait.
fn flush(thread: &Mutex<Option<AsyncGuard>>) {
    let guard = thread.try_lock().and_then(|mut guard| guard.take());
    drop(guard);
}

fn text<W: Write + Send>(out: W) -> FullFormat<PlainSyncDecorator<W>>
where
    PlainSyncDecorator<W>: slog_term::Decorator,
{
    FullFormat::new(PlainSyncDecorator::new(out))
        .use_custom_timestamp(timestamp)
        .use_original_order()
        .build()
}

/// One write per line, so that lines of several processes on one pipe stay whole.
fn json<W: Write>(out: W) -> Json<BufWriter<W>> {
    Json::new(BufWriter::new(out)).set_flush(true).add_default_keys().build()
}

/// The time of day and date in UTC, as in `2026-01-31T23:59:59.123Z`.
fn timestamp(out: &mut dyn Write) -> io::Result<()> {
    let now = OffsetDateTime::now_utc();
    let (year, month, day) = now.to_calendar_date();
    let (hour, minute, second, milli) = now.to_hms_milli();
    let month = u8::from(month);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn log_panic(format: LogFormat, panic: &PanicHookInfo<'_>) {
    let message = panic_message(panic.payload());
    let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let logger = match format {
        LogFormat::Text => Logger::root(text(io::stderr()).ignore_res(), o!()),
        LogFormat::Json => {
            Logger::root(std::sync::Mutex::new(json(io::stderr())).ignore_res(), o!())
        }
    };
    crit!(logger, "internal error, the process is aborted: {}", message;
        "place" => place, "thread" => thread);
}

/// What a panic says, on one line.
fn panic_message(payload: &dyn Any) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use slog::info;

    use super::*;

    /// A log's output, to be looked at while the logger still has its end.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).expect("UTF-8")
        }
    }

    #[test]
    fn a_text_line_has_a_utc_time_a_level_the_message_and_its_values_in_order() {
        let output = Output::default();
        let logger = Logger::root(text(output.clone()).ignore_res(), o!());
        info!(logger, "became leader at term {}", 7; "first" => 1, "second" => "two");
        let line = output.text();
        let (time, rest) = line.split_once(' ').expect("a time");
        assert_eq!(time.len(), "2026-01-31T23:59:59.123Z".len());
        assert!(time.ends_with('Z'));
        assert_eq!(rest, "INFO became leader at term 7, first: 1, second: two\n");
    }

    #[test]
    fn a_json_line_is_one_object() {
        let output = Output::default();
        let drain = std::sync::Mutex::new(json(output.clone()));
        let logger = Logger::root(drain.ignore_res(), o!());
        info!(logger, "ready to serve client requests"; "port" => 12380);
        let line = output.text();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["msg"], "ready to serve client requests");
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["port"], 12380);
    }

    #[test]
    fn everything_queued_is_written_when_the_guard_goes() {
        let output = Output::default();
        let (drain, guard) = queued(text(output.clone()));
        let guard = Mutex::new(Some(guard));
        let logger = Logger::root(drain.ignore_res(), o!());
        for line in 0..1000 {
            info!(logger, "line {}", line);
        }
        flush(&guard);
        assert_eq!(output.text().lines().count(), 1000);
        info!(logger, "too late");
        flush(&guard);
        assert_eq!(output.text().lines().count(), 1000);
    }

    #[test]
    fn a_full_queue_drops_lines_without_blocking_and_says_how_many() {
        let output = Output::default();
        let (drain, guard) = queued(text(output.clone()));
        let logger = Logger::root(drain.ignore_res(), o!());
        let stuck = output.0.lock();
        for line in 0..2 * QUEUED_LINES {
            info!(logger, "line {}", line);
        }
        drop(stuck);
        // The count is reported with the next line that finds room.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !output.text().contains("dropped messages due to channel overflow") {
            assert!(Instant::now() < deadline, "the dropped lines are not reported");
            info!(logger, "one more line");
            std::thread::yield_now();
        }
        drop(guard);
        assert!(output.text().matches(" line ").count() < 2 * QUEUED_LINES, "nothing was dropped");
    }

    #[test]
    fn a_panic_message_is_one_line() {
        assert_eq!(panic_message(&"two\n  lines"), "two lines");
        assert_eq!(panic_message(&String::from("owned")), "owned");
        assert_eq!(panic_message(&7_u8), "no message");
    }
}
