//! `leaktrace top`: a recording that is looked at while it goes on, and kept in memory until it is
//! saved.
//!
//! Three threads, so that none waits for another: the recording, the analyst who names addresses and
//! makes a report of what there is, and the screen. However one of them ends, the others end too, the
//! probes are taken off and the terminal is as it was.

mod analyst;
mod cost;
mod details;
mod recorder;
mod rows;
mod screen;
mod state;
mod view;
mod wrap;
#[cfg(test)]
mod tests;

use std::{
    io::{IsTerminal as _, stdin, stdout},
    panic::resume_unwind,
    sync::mpsc::channel,
    thread::{self, ScopedJoinHandle},
};

use anyhow::Result;
use tokio::sync::oneshot;

use crate::{
    capture::schema,
    privileges::{self, Phase},
    record::{self, Options},
    report::Report,
};

use self::{analyst::Analyst, recorder::ToAnalyst, screen::Shown};

/// There is nothing to draw on.
#[derive(Debug, thiserror::Error)]
#[error("top needs a terminal: use `leaktrace record -p {pid}` to write a capture file")]
pub struct NoTerminal {
    pid: i32,
}

/// What was seen when the view was closed.
pub struct Seen {
    /// The report as of the last interval.
    pub report: Report,
    /// Whether the recording had ended by itself: the target has, most likely.
    pub by_itself: bool,
}

/// Shows a process until the user quits, a signal comes or the process ends. `None`: it ended before
/// anything was seen.
///
/// # Errors
///
/// There is no terminal, or it failed; the target or the kernel cannot be traced.
pub fn top(options: &Options, colour: bool) -> Result<Option<Seen>> {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if is_dumb || !stdin().is_terminal() || !stdout().is_terminal() {
        return Err(NoTerminal { pid: options.pid }.into());
    }
    privileges::keep(Phase::Attach);
    thread::scope(|scope| {
        let (inputs, to_analyst) = channel();
        let (updates, to_screen) = channel();
        let (quit, quitted) = oneshot::channel::<()>();
        let mut recorder = ToAnalyst::new(inputs.clone());
        let recording = scope.spawn(move || {
            let stop = async {
                // The screen is closed, whether it says so or is gone.
                let _ = quitted.await;
            };
            let ending = record::run(options, &mut recorder, stop)?;
            let end = ending.close.end();
            recorder.end(ending);
            anyhow::Ok(end)
        });
        let analyst = scope.spawn(move || {
            privileges::keep(Phase::NameAndSave);
            Analyst::new(updates).run(&to_analyst)
        });
        privileges::keep(Phase::Nothing);
        let is_over = || recording.is_finished() || analyst.is_finished();
        let shown = screen::show(&to_screen, &inputs, colour, is_over);
        drop(quit);
        drop(inputs);
        let end = join(recording);
        let report = join(analyst);
        let shown = shown?;
        let end = end?;
        Ok(report.map(|report| Seen {
            report,
            by_itself: shown == Shown::Over && end != schema::End::Signal,
        }))
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
