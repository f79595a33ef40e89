//! Captures as the commands read them: with the symbols that there are, and where only the report is
//! wanted, in little memory.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufReader, Read},
    mem, panic,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};

use crate::{
    capture::{
        Capture, Limits, ReadError,
        schema::{Interval, Symbols},
    },
    live_heap::{self, LiveHeap},
    report::{self, Report, ReportOptions},
    symbolize,
};

/// Intervals that may wait to be put into the histories.
const AHEAD: usize = 4;

/// The report of a capture file.
///
/// # Errors
///
/// When the file cannot be read, or is none of ours.
pub fn read_report(path: &Path, options: &ReportOptions, debug_dirs: &[PathBuf]) -> Result<Report> {
    let (capture, heap) =
        read_apart(open(path)?).with_context(|| format!("`{}`", path.display()))?;
    let symbols = symbols(&capture, debug_dirs);
    Ok(report::build_from(&capture, heap, Some(&symbols), options))
}

/// A capture file as a whole.
///
/// # Errors
///
/// As [`read_report`].
pub fn read_capture(path: &Path) -> Result<Capture> {
    Capture::read(open(path)?).with_context(|| format!("`{}`", path.display()))
}

/// The capture's own symbols; those that are looked up here and now if it was not closed, and so has
/// none, or if there is debug information to look in.
pub fn symbols<'a>(capture: &'a Capture, debug_dirs: &[PathBuf]) -> Cow<'a, Symbols> {
    match &capture.symbols {
        Some(own) if debug_dirs.is_empty() => Cow::Borrowed(own),
        _ => Cow::Owned(symbolize::offline(capture, debug_dirs.iter().cloned())),
    }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    Ok(BufReader::new(file))
}

/// Reads a capture, and what its intervals have of each site into the sites' histories: on a thread of
/// its own, and so that nothing of it is held twice.
///
/// # Errors
///
/// As [`Capture::read`].
pub fn read_apart(input: impl Read) -> Result<(Capture, LiveHeap), ReadError> {
    let (send, receive) = mpsc::sync_channel::<Interval>(AHEAD);
    thread::scope(|scope| {
        let histories = scope.spawn(move || {
            let mut heap = live_heap::Builder::default();
            receive.iter().for_each(|interval| heap.add(&interval));
            heap
        });
        let capture = Capture::read_each(input, Limits::default(), |interval| {
            let apart = Interval {
                deltas: mem::take(&mut interval.deltas),
                go_buckets: mem::take(&mut interval.go_buckets),
                ..interval.clone()
            };
            // The other end is there as long as its thread is, and a panic there is one here, below.
            let _ = send.send(apart);
        });
        drop(send);
        let heap = histories
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic));
        let capture = capture?;
        let heap = heap.finish(&capture.header);
        Ok((capture, heap))
    })
}
