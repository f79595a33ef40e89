//! What ends a recording in order.

use std::{os::fd::BorrowedFd, pin::Pin};

use tokio::io::unix::AsyncFd;

use crate::stop_signals::StopSignals;

/// What can end a recording.
pub(super) struct Ends<'a> {
    /// A signal.
    pub(super) signals: StopSignals,
    /// Readable when the target exits.
    pub(super) exit: AsyncFd<BorrowedFd<'a>>,
    /// Ready when whoever asked for the recording has enough.
    pub(super) stop: Pin<&'a mut dyn Future<Output = ()>>,
}
