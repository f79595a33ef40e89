//! The signals that end what takes long, in order.

use std::{future::poll_fn, task::Poll};

use anyhow::{Context as _, Result};
use procfs::process::Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
