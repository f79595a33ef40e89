//! The signals that end what takes long, in order.

use std::{future::poll_fn, sync::Arc, task::Poll, thread, time::Duration};

use anyhow::{Context as _, Result};
use procfs::process::Process;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use crate::inventory::Watch;

/// How often whoever waits for a search is told how far it has come.
const TICK: Duration = Duration::from_millis(100);

/// Waits for a signal to stop.
pub(crate) struct StopSignals(Vec<Signal>);

impl StopSignals {
    /// Catches SIGINT, SIGTERM and SIGXCPU, SIGHUP and SIGQUIT unless they are ignored (`nohup`),
    /// and SIGXFSZ, with which a write to a file at its limit is an error like any other.
    pub(crate) fn catch() -> Result<Self> {
        let ignored = Process::myself()
            .and_then(|process| process.status())
            .map_or(0, |status| status.sigign);
        let is_ignored = |kind: SignalKind| ignored & (1 << (kind.as_raw_value() - 1)) != 0;
        let always = [
            (SignalKind::interrupt(), "SIGINT"),
            (SignalKind::terminate(), "SIGTERM"),
            (SignalKind::from_raw(nix::libc::SIGXCPU), "SIGXCPU"),
            (SignalKind::from_raw(nix::libc::SIGXFSZ), "SIGXFSZ"),
        ];
        let unless_ignored = [
            (SignalKind::hangup(), "SIGHUP"),
            (SignalKind::quit(), "SIGQUIT"),
        ];
        let kinds = unless_ignored
            .into_iter()
            .filter(|(kind, _)| !is_ignored(*kind));
        let caught = always
            .into_iter()
            .chain(kinds)
            .map(|(kind, name)| signal(kind).with_context(|| format!("failed to catch {name}")));
        Ok(Self(caught.collect::<Result<_>>()?))
    }

    /// Returns when one of them has come.
    pub(crate) async fn recv(&mut self) {
        poll_fn(|context| {
            let has_come = self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(context).is_ready());
            if has_come {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// Lets a search run on a thread of its own, which lets all others go first: the target is not to wait for a processor
/// that it is looked at with. A signal ends it early, with what it has found; `progress` is called ten times a second.
///
/// # Errors
///
/// No thread can be made, or it panicked.
pub(crate) async fn watched<T: Send + 'static>(
    watch: Watch,
    search: impl FnOnce(&Watch) -> T + Send + 'static,
    signals: &mut StopSignals,
    mut progress: impl FnMut(&Watch),
) -> Result<T> {
    let watch = Arc::new(watch);
    let its = watch.clone();
    let (found, mut ended) = oneshot::channel();
    let run = move || {
        const LEAST: i32 = 19;
        // Where that is forbidden the search is made all the same.
        let _ = rustix::process::nice(LEAST);
        // Whoever waits for it may have given up.
        let _ = found.send(search(&its));
    };
    thread::Builder::new()
        .name("search".to_owned())
        .spawn(run)
        .context("failed to make a thread")?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            found = &mut ended => return found.context("failed to look at the process"),
            () = signals.recv() => watch.stop(),
            _ = ticks.tick() => progress(&watch),
        }
    }
}
