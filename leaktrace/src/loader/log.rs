//! The kernel side's diagnostic log: one line for each loss.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::LoadError;

/// Writes what the kernel side logs to stderr.
pub struct KernelLog(EbpfLogger<Stderr>);

struct Stderr;

impl KernelLog {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        EbpfLogger::init_with_logger(ebpf, Stderr)
            .map(Self)
            .map_err(|error| LoadError::other("read the kernel side's log", error))
    }

    /// Writes what has come since the last call.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl Log for Stderr {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        eprintln!("leaktrace: kernel: {}", record.args());
    }

    fn flush(&self) {}
}
