//! Harness of the privileged integration tests: real services, the built command, a real kernel.
//!
//! Contract: every process that a test starts ends with the test, by its own handle. Services
//! are waited for by what they print, never by sleeping a guessed time.

mod blocks;
mod browser;
mod container;
mod hoard;
mod matrix;
mod memory_cgroup;
mod served;
mod service;
mod terminal;
mod tool;
mod traces;
mod watchdog;

pub use blocks::{Counts, blocks_of, told};
pub use browser::Browser;
pub use container::{Container, Root, innermost, ns_pids};
pub use hoard::{Hoard, live_bytes};
pub use matrix::{go_modes, go_versions};
pub use memory_cgroup::MemoryCgroup;
pub use served::{get, record_what_is_served};
pub use service::Service;
pub use terminal::Terminal;
pub use tool::{Finished, Leaktrace, report, run};
pub use traces::assert_nothing_left;

use std::path::{Path, PathBuf};

use leaktrace::go::{GoBinary, GoVariable};

/// By how much of `bytes`, all in objects of 512 bytes, Go's sampling estimates may be off by chance: 4.5 standard
/// deviations, which is exceeded less than once in a hundred thousand times. A sample stands for 524,544 bytes.
pub fn off_by_chance(bytes: f64) -> f64 {
    4.5 / (bytes / 524_544.0).sqrt()
}

/// Folder of the project.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// File in `target/screenshots`, where what is drawn is kept for people.
///
/// # Panics
///
/// The folder cannot be made.
pub fn screenshot(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root().join("target"), PathBuf::from);
    let folder = target.join("screenshots");
    std::fs::create_dir_all(&folder).expect("a folder for screenshots");
    folder.join(name)
}

/// Path of a sample service that `cargo xtask build` or `cargo xtask test` has built.
///
/// # Panics
///
/// It is not there: a missing service is a failure, not a skip.
pub fn sample(name: &str) -> PathBuf {
    let folder = std::env::var_os("LEAKTRACE_TARGETS")
        .map_or_else(|| root().join("target/targets"), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "`{}` is not built: run `cargo xtask test`",
        path.display()
    );
    path
}

/// Link-time address of `runtime.MemProfileRate` in an unstripped Go program that is not
/// position-independent: its address in the process.
///
/// # Panics
///
/// It is not there.
pub fn sample_rate_address(path: &Path) -> u64 {
    let file = std::fs::read(path).expect("the program can be read");
    let binary = GoBinary::parse(file.into()).expect("the program is well formed");
    let binary = binary.expect("the program is a Go program");
    let found = binary.variable(GoVariable::MemProfileRate);
    found.expect("the program has symbols").address
}

/// The built command.
///
/// # Panics
///
/// It is not there.
pub fn leaktrace_binary() -> PathBuf {
    let path = std::env::var_os("LEAKTRACE_BIN").map_or_else(
        || root().join("target/x86_64-unknown-linux-gnu/release/leaktrace"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "`{}` is not built: run `cargo xtask build`",
        path.display()
    );
    path
}
