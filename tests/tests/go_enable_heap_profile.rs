//! `--go-enable-heap-profile` on services without a heap profile: the leaking line is named as with
//! the sampler on, and `runtime.MemProfileRate` is 0 again whichever way leaktrace ends, except
//! killed.

use std::{fs::File, os::unix::fs::FileExt as _};

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, run, sample, sample_rate_address};
use nix::sys::signal::Signal;
use serde_json::Value;

const FLAG: &str = "--go-enable-heap-profile";
const RATE: u64 = 512 << 10;
const LEAK: &str = "main.(*rowCache).Store";

/// A service whose sampler is off, and where its rate is.
struct Target {
    service: Service,
    memory: File,
    rate: u64,
}

impl Target {
    fn start(name: &str, bytes_per_s: u64) -> Self {
        let mut service = Service::start(
            name,
            [
                format!("-leak-bytes-per-s={bytes_per_s}"),
                "-leak-limit-bytes=0".to_owned(),
            ],
        );
        service.wait_for("leaked_bytes", 1.0);
        let memory = File::open(format!("/proc/{}/mem", service.pid())).expect("we are root");
        let target = Self {
            service,
            memory,
            rate: sample_rate_address(&sample(name)),
        };
        assert_eq!(target.rate(), 0, "the sampler is on already");
        target
    }

    fn rate(&self) -> u64 {
        let mut word = [0; 8];
        let read = self.memory.read_exact_at(&mut word, self.rate);
        read.expect("the target lives");
        u64::from_le_bytes(word)
    }

    /// Starts to record; when this returns the sampler is on.
    fn record(&self, args: &[&str]) -> Leaktrace {
        let args = [FLAG].iter().chain(args);
        let run = Leaktrace::record(self.service.pid(), args);
        assert_eq!(self.rate(), RATE);
        run
    }

    /// The service is unharmed and its sampler off again.
    fn is_as_before(&mut self) {
        assert_eq!(self.rate(), 0, "the sampler was left on");
        self.answers();
        assert_nothing_left();
    }

    fn answers(&mut self) {
        assert!(self.service.is_running(), "the target did not survive");
        let before = self.service.truth("leaked_bytes");
        self.service.wait_for("leaked_bytes", before + 1.0);
    }
}

fn switch(report: &Value) -> &Value {
    &report["target"]["go"]["sampler_switch"]
}

fn names_the_leak(version: &str) {
    let mut target = Target::start(&format!("reload-{version}-nopprof"), 32 << 20);
    // All that it leaks while it works is what the report has, however long it takes to attach and to end.
    target.service.ask("pause");
    let before = target.service.truth("leaked_bytes");
    let run = target.record(&[]);
    target.service.ask("resume");
    let attached_s = target.service.truth("t_s");
    target.service.wait_for("t_s", attached_s + 15.0);
    target.service.ask("pause");
    target.service.ask("gc");
    let leaked = target.service.truth("leaked_bytes") - before;
    run.signal(Signal::SIGINT);
    let finished = run.wait();
    target.service.ask("resume");
    target.is_as_before();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = finished.report();
    let first = &report["sites"][0];
    assert_eq!(first["verdict"], "leak", "{first:#}");
    let own = |frame: &&Value| {
        frame["function"]
            .as_str()
            .unwrap_or("")
            .starts_with("main.")
    };
    let frame = first["stack"].as_array().unwrap().iter().find(own);
    let frame = frame.unwrap_or_else(|| panic!("no frame of the service in {first:#}"));
    assert_eq!(frame["function"], LEAK, "{first:#}");
    let live = first["live_bytes"].as_f64().unwrap();
    assert!(leaked > 64e6, "the service leaked only {leaked} bytes");
    assert!(
        (live / leaked - 1.0).abs() < 0.15,
        "live {live} against {leaked} leaked since the attach"
    );
    let go = &report["target"]["go"];
    assert_eq!(go["heap_profiling"], false, "it was off at the attach");
    assert_eq!(switch(&report)["end"], "put-back", "{go:#}");
    assert_eq!(switch(&report)["rate_written"], RATE);
    let limits = report["limits"].to_string();
    assert!(limits.contains("before the attach"), "{limits}");
    assert_eq!(
        limits.contains("first samples"),
        version.starts_with("1.19")
    );
}

#[test]
fn go_1_27() {
    names_the_leak("1.27.3");
}

#[test]
fn go_1_19() {
    names_the_leak("1.19.8");
}

#[test]
fn signals() {
    for version in ["1.27.3", "1.19.8"] {
        let mut target = Target::start(&format!("reload-{version}-nopprof"), 8 << 20);
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ] {
            let run = target.record(&[]);
            run.signal(signal);
            let finished = run.wait();
            assert_eq!(finished.code, Some(0), "{signal}: {}", finished.stderr);
            target.is_as_before();
            let report = finished.report();
            assert_eq!(report["window"]["end"], "signal", "{signal}");
            assert_eq!(switch(&report)["end"], "put-back", "{signal}");
        }
    }
}

/// The disk is full after the sampler was switched on.
#[test]
fn an_error_after_the_attach() {
    let mut target = Target::start("reload-1.27.3-nopprof", 8 << 20);
    let args = [FLAG, "--interval", "10ms"];
    let run = Leaktrace::record_with_full_disk(target.service.pid(), 32 << 10, args);
    let finished = run.wait();
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("failed to write"),
        "{}",
        finished.stderr
    );
    target.is_as_before();
}

#[test]
fn the_target_exits() {
    let mut target = Target::start("reload-1.27.3-nopprof", 8 << 20);
    let run = target.record(&[]);
    target.service.end();
    let finished = run.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = finished.report();
    assert_eq!(report["window"]["end"], "target-exit");
    assert_eq!(switch(&report)["end"], "target-gone");
    assert_nothing_left();
}

/// A killed leaktrace leaves the sampler on; the next one with the flag knows that and puts it back.
#[test]
fn killed() {
    for version in ["1.27.3", "1.19.8"] {
        let mut target = Target::start(&format!("reload-{version}-nopprof"), 8 << 20);
        let run = target.record(&[]);
        run.signal(Signal::SIGKILL);
        let killed = run.wait();
        assert_eq!(killed.code, None);
        assert_eq!(target.rate(), RATE, "docs/record.md says that it stays");
        target.answers();
        assert_nothing_left();
        assert_eq!(switch(&killed.report())["end"], "unknown");

        let run = target.record(&[]);
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert!(finished.stderr.contains("left on"), "{}", finished.stderr);
        target.is_as_before();
        let report = finished.report();
        assert_eq!(switch(&report)["left_on"], true);
        assert_eq!(switch(&report)["end"], "put-back");
    }
}

/// Two at a time would switch it off under each other.
#[test]
fn a_second_one_is_refused() {
    let mut target = Target::start("reload-1.27.3-nopprof", 8 << 20);
    let first = target.record(&[]);
    let pid = target.service.pid().to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("second.leaktrace");
    let file = file.to_str().unwrap();
    let second = run(["record", "-p", &pid, FLAG, "-d", "1s", "-o", file]);
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another leaktrace"), "{said}");
    assert_eq!(target.rate(), RATE, "the first one's sampler was touched");
    first.signal(Signal::SIGINT);
    first.wait();
    target.is_as_before();
}

/// Where the sampler is on there is nothing to do, and that is said.
#[test]
fn a_sampler_that_is_on_is_left_alone() {
    let mut service = Service::start("reload-1.27.3", [""; 0]);
    service.wait_for("leaked_bytes", 1.0);
    let rate = sample_rate_address(&sample("reload-1.27.3"));
    let memory = File::open(format!("/proc/{}/mem", service.pid())).unwrap();
    let run = Leaktrace::record(service.pid(), [FLAG, "-d", "1s"]);
    let finished = run.wait();
    assert!(
        finished.stderr.contains("has nothing to do"),
        "{}",
        finished.stderr
    );
    assert!(switch(&finished.report()).is_null());
    let mut word = [0; 8];
    memory.read_exact_at(&mut word, rate).unwrap();
    assert_eq!(u64::from_le_bytes(word), RATE);
    assert_nothing_left();
}

#[test]
fn what_has_no_sampler_is_refused() {
    let mut vm = Service::start("vm", [""; 0]);
    let pid = vm.pid().to_string();
    let file = "/nonexistent/never-made.leaktrace";
    let refused = run(["record", "-p", &pid, FLAG, "-o", file]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(6), "{said}");
    assert!(said.contains("not a Go program"), "{said}");
    assert!(vm.is_running());

    let refused = run(["record", "-p", &pid, FLAG, "--probe", "vm", "-o", file]);
    assert_eq!(refused.status.code(), Some(2));
}
