//! The capture file's name where none was given.

use std::path::PathBuf;

use crate::target::Target;

/// `leaktrace-COMM-PID-UTC.leaktrace`, with nothing in COMM that a shell or a path minds.
pub(super) fn default_file(target: &Target) -> PathBuf {
    let comm: String = target
        .comm
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let utc = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("leaktrace-{comm}-{}-{utc}.leaktrace", target.pid))
}
