//! The sample program that keeps a block a millisecond, and its count of them.

use std::{fs, path::PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Leaktrace, Service};

/// Size of its blocks, in bytes.
const BLOCK: u64 = 65536;

/// A running `hoard`, which waits.
pub struct Hoard {
    /// The program.
    pub service: Service,
    told: PathBuf,
    _folder: TempDir,
}

impl Hoard {
    /// Starts it. Nothing is kept before [`Hoard::go`].
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub fn start() -> Self {
        Self::with_mappings(0)
    }

    /// The same with so many mappings, every second one of its own code.
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub fn with_mappings(mappings: u32) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let told = folder.path().join("blocks");
        fs::write(&told, [0; 8]).expect("a file in it");
        let mappings = mappings.to_string();
        let mut service = Service::start("hoard", [told.as_os_str(), mappings.as_ref()]);
        service.line();
        Self {
            service,
            told,
            _folder: folder,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.service.pid()
    }

    /// Lets it begin.
    pub fn go(&mut self) {
        self.service.say("go");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it runs");
    }

    /// Blocks that it has kept and counted, even if it is gone.
    ///
    /// # Panics
    ///
    /// Its file is gone.
    pub fn blocks(&self) -> u64 {
        let bytes = fs::read(&self.told).expect("its file");
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// Waits until it has kept so many more.
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn wait_for(&mut self, more: u64) {
        let until = self.blocks() + more;
        while self.blocks() < until {
            assert!(self.service.is_running(), "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Ends a recording of it while it stands still, and gives the report: each of its blocks is in it.
    ///
    /// # Panics
    ///
    /// The recording has failed, or the report has fewer or more.
    pub fn ended(&self, run: Leaktrace) -> Value {
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let report = finished.report();
        self.assert_all_seen(&report);
        report
    }

    /// Fails unless the report has each of its blocks. It must stand still, or be gone; then it may have been
    /// about to count another one.
    ///
    /// # Panics
    ///
    /// The report has fewer or more.
    pub fn assert_all_seen(&self, report: &Value) {
        let live = live_bytes(report, "malloc", "\"hoard\"");
        let blocks = self.blocks();
        assert!(
            live == blocks * BLOCK || live == (blocks + 1) * BLOCK,
            "{} blocks live, {blocks} kept",
            live as f64 / BLOCK as f64
        );
    }
}

/// Live bytes of the sites of a kind that have a function in their stack.
///
/// # Panics
///
/// It is no report.
pub fn live_bytes(report: &Value, kind: &str, function: &str) -> u64 {
    let sites = report["sites"].as_array().expect("a report");
    let ours = sites
        .iter()
        .filter(|site| site["kind"] == kind && site["stack"].to_string().contains(function));
    ours.filter_map(|site| site["live_bytes"].as_u64()).sum()
}
