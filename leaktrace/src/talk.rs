//! What `record` says to people, on stderr.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    path::Path,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leaktrace::{
    plan::Plan,
    record::{Progress, State},
    report::human,
    target::Target,
    why::Watch,
};

/// Lines, and below them on a terminal one that tells where the recording stands.
pub(crate) struct Talk {
    quiet: bool,
    /// Hidden where stderr is not a terminal.
    live: ProgressBar,
    /// The same for a search at the end, while there is one: they stand in the same line.
    look: Option<LookProgress>,
}

impl Talk {
    pub(crate) fn new(quiet: bool) -> Self {
        let live = ProgressBar::with_draw_target(None, draw_target(quiet));
        // Cut to the terminal's width, so that it is one line and can be taken away again.
        let style = ProgressStyle::with_template("{wide_msg}");
        live.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self {
            quiet,
            live,
            look: None,
        }
    }

    /// A line of its own, above the one that changes.
    fn say(&mut self, text: &str) {
        self.look = None;
        if !self.quiet {
            // The terminal may be gone, as when a connection broke; the recording goes on.
            let write = || writeln!(stderr(), "leaktrace: {text}");
            let _ = self.live.suspend(write);
        }
    }
}

impl Progress for Talk {
    fn attached(&mut self, target: &Target, plan: &Plan, file: &Path) {
        self.say(&format!(
            "attached to {} ({}) with {} probes, writing `{}`",
            target.pid,
            target.comm.escape_debug(),
            plan.uprobes.len() + plan.tracepoints.len(),
            file.display()
        ));
        for limit in &plan.limits {
            self.say(&format!("not seen: {}: {}", limit.what, limit.reason));
        }
    }

    fn interval(&mut self, state: &State) {
        self.live.set_message(line(state));
        self.live.tick();
    }

    fn note(&mut self, text: &str) {
        self.say(text);
    }

    fn symbolizing(&mut self) {
        self.live.finish_and_clear();
        self.say("detached, looking up symbols");
    }

    fn looking(&mut self, watch: &Watch) {
        self.live.finish_and_clear();
        let quiet = self.quiet;
        let look = self.look.get_or_insert_with(|| LookProgress::new(quiet));
        look.show(watch);
    }
}

/// How far the search for what keeps objects alive has come: a line on stderr where that is a terminal.
pub(crate) struct LookProgress(ProgressBar);

impl LookProgress {
    pub(crate) fn new(is_quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, draw_target(is_quiet));
        let style = ProgressStyle::with_template("{wide_bar} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    /// Draws where it stands.
    pub(crate) fn show(&self, watch: &Watch) {
        let (done, all) = watch.bytes();
        self.0.set_length(all);
        self.0.set_position(done);
        self.0.set_message(match watch.is_stopped() {
            true => "stopping".to_owned(),
            false => format!(
                "{} of {} looked at, Ctrl-C ends it",
                human::bytes(done as f64),
                human::bytes(all as f64)
            ),
        });
    }
}

impl Drop for LookProgress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn draw_target(is_quiet: bool) -> ProgressDrawTarget {
    match is_quiet || !stderr().is_terminal() {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.live.finish_and_clear();
    }
}

/// Where a recording stands, in one line.
fn line(state: &State) -> String {
    let time = match state.left {
        Some(left) => format!("{} left", human::seconds(left.as_secs_f64().round())),
        None => format!(
            "{} so far, Ctrl-C ends it",
            human::seconds(state.elapsed.as_secs_f64().round())
        ),
    };
    let mut parts = vec![time, human::count(state.events, "event")];
    parts.push(match state.losses {
        0 => "no losses".to_owned(),
        losses => format!("{} lost", human::thousands(losses)),
    });
    if let (Some(rss), Some(before)) = (state.rss, state.rss_at_attach) {
        parts.push(format!(
            "resident {} ({})",
            human::bytes(rss as f64),
            human::change(rss as f64 - before as f64)
        ));
    }
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_line_says_where_the_recording_stands() {
        let mut state = State {
            elapsed: Duration::from_millis(12_900),
            left: Some(Duration::from_millis(47_100)),
            events: 1234,
            losses: 0,
            rss: Some(300 << 20),
            rss_at_attach: Some(200 << 20),
        };
        assert_eq!(
            line(&state),
            "47 s left · 1,234 events · no losses · resident 300.0 MiB (+100.0 MiB)"
        );
        state.left = None;
        state.losses = 7;
        state.rss = Some(100 << 20);
        assert_eq!(
            line(&state),
            "13 s so far, Ctrl-C ends it · 1,234 events · 7 lost · resident 100.0 MiB (-100.0 MiB)"
        );
        state.rss = None;
        assert!(line(&state).ends_with("7 lost"));
    }
}
