//! Goroutines blocked in every way that Go has, beside some that run and some that come and go: each
//! must be named by its line and its reason, on every release of Go.
//!
//! `LEAKTRACE_GO_VERSIONS`, a list with commas, says for which releases the target is built; without
//! it the two that `cargo xtask test` builds.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use leaktrace_tests::{Leaktrace, Service, run};
use serde_json::Value;

const EACH: u64 = 3;

/// Way of waiting, the reason since Go 1.20, and before where it was another.
const WAYS: [(&str, Option<&str>, Option<&str>); 17] = [
    ("chanSend", Some("chan send"), None),
    ("fullChanSend", Some("chan send"), None),
    ("chanReceive", Some("chan receive"), None),
    ("nilSend", Some("chan send (nil chan)"), None),
    ("nilReceive", Some("chan receive (nil chan)"), None),
    ("selectTwo", Some("select"), None),
    ("selectEmpty", Some("select (no cases)"), None),
    ("mutexLock", Some("sync.Mutex.Lock"), Some("semacquire")),
    ("readLock", Some("sync.RWMutex.RLock"), Some("semacquire")),
    ("groupWait", Some("sync.WaitGroup.Wait"), Some("semacquire")),
    ("conditionWait", Some("sync.Cond.Wait"), None),
    ("sleep", Some("sleep"), None),
    ("networkRead", Some("IO wait"), None),
    ("systemCall", None, None),
    ("deep", Some("chan receive"), None),
    ("widen", Some("chan receive"), None),
    // One waits for the readers, the others for it; so with the network, one reads at a time.
    ("writeLock", Some("sync.RWMutex.Lock"), Some("semacquire")),
];

fn versions() -> Vec<String> {
    let asked = std::env::var("LEAKTRACE_GO_VERSIONS").unwrap_or("1.27.3,1.19.8".to_owned());
    asked.split(',').map(str::to_owned).collect()
}

/// The reason that release `version` has for a way of waiting.
fn reason(version: &str, way: &(&str, Option<&'static str>, Option<&'static str>)) -> Value {
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    let reason = match *way {
        // WaitGroup has its own since Go 1.24 (runtime/runtime2.go, `waitReasonStrings`).
        ("groupWait", ..) if minor < 24 => Some("semacquire"),
        (_, _, before) if minor < 20 && before.is_some() => before,
        (_, since, _) => since,
    };
    reason.map_or(Value::Null, Value::from)
}

fn groups(census: &Value) -> std::slice::Iter<'_, Value> {
    census["groups"].as_array().unwrap().iter()
}

/// The groups that are blocked in the function of that name, whose line must say so.
fn blocked_in<'a>(census: &'a Value, way: &str) -> Vec<&'a Value> {
    let source = include_str!("../targets/go/blocked/blocked.go");
    let function = format!("main.{way}");
    let blocked: Vec<_> = groups(census)
        .filter(|group| group["blocked_at"]["function"] == function.as_str())
        .collect();
    for group in &blocked {
        let line = group["blocked_at"]["line"].as_u64().unwrap() as usize;
        let text = source.lines().nth(line - 1).unwrap();
        assert!(text.contains("blocks here"), "line {line}: {text}");
        let created_by = group["created_by"]["function"].as_str().unwrap();
        assert_eq!(created_by, "main.start", "{group:#}");
    }
    blocked
}

fn look(pid: i32) -> Value {
    let output = run([
        "goroutines",
        "-p",
        &pid.to_string(),
        "--format",
        "json",
        "-n",
        "1000",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count_of(groups: &[&Value]) -> u64 {
    groups
        .iter()
        .map(|group| group["count"].as_u64().unwrap())
        .sum()
}

fn names_every_way(version: &str, variant: &str) {
    let mut service = Service::start(&format!("blocked-{version}-{variant}"), [""; 0]);
    let truth = service.truth("goroutines") as u64;
    for _ in 0..5 {
        let census = look(service.pid());
        for way in &WAYS {
            let blocked = blocked_in(&census, way.0);
            let count = count_of(&blocked);
            assert_eq!(count, EACH, "{version} {}: {census:#}", way.0);
            let state = if way.0 == "systemCall" {
                "syscall"
            } else {
                "waiting"
            };
            assert!(
                blocked.iter().all(|group| group["state"] == state),
                "{blocked:#?}"
            );
            let expected = reason(version, way);
            let mut reasons = blocked.iter().map(|group| &group["wait_reason"]);
            let is_named = match way.0 {
                "writeLock" | "networkRead" => reasons.any(|reason| *reason == expected),
                _ => reasons.all(|reason| *reason == expected),
            };
            assert!(
                is_named,
                "{version} {}: not {expected}: {blocked:#?}",
                way.0
            );
            // Where the stack is deeper than what is read, that is said.
            let is_cut = matches!(way.0, "deep" | "widen");
            assert!(
                blocked
                    .iter()
                    .all(|group| group["stack_truncated"] == is_cut)
            );
        }
        let channel =
            |way: &str, field: &str| blocked_in(&census, way)[0]["channel"][field].clone();
        assert_eq!(channel("fullChanSend", "capacity"), 3);
        assert_eq!(channel("fullChanSend", "queued"), 3);
        assert_eq!(channel("fullChanSend", "element_size"), 24);
        assert_eq!(channel("fullChanSend", "senders"), EACH);
        assert_eq!(
            channel("chanReceive", "receivers"),
            3 * EACH,
            "deep and wide wait there too"
        );
        assert_eq!(channel("chanReceive", "senders"), 0);
        assert!(blocked_in(&census, "nilSend")[0]["channel"].is_null());

        // Those that run are there, without a stack; the runtime has a few of its own.
        let running = groups(&census).filter(|group| group["state"] == "running");
        assert!(
            running
                .clone()
                .all(|group| group["stack"] == Value::Array(Vec::new()))
        );
        let total = census["total"].as_u64().unwrap();
        assert!(
            (truth - 17..truth + 40).contains(&total),
            "{total}, truth {truth}"
        );
        assert_eq!(census["unreadable"], 0);
    }
    assert!(service.is_running(), "the target did not survive");
}

#[test]
fn every_way_of_waiting_is_named() {
    for version in versions() {
        names_every_way(&version, "nopprof");
    }
}

#[test]
fn every_way_of_waiting_is_named_in_stripped_programs() {
    for version in versions() {
        names_every_way(&version, "stripped");
    }
}

/// Nobody comes, nobody leaves: for ever blocked, but not a leak. The sampler is off here. What is
/// made and ends is counted.
#[test]
fn a_constant_number_is_steady() {
    for version in versions() {
        // As fast as it can it would be refused.
        let args = ["-churn-pause", "1ms"];
        let mut service = Service::start(&format!("blocked-{version}-nopprof"), args);
        service.truth("goroutines");
        let args = ["-d", "11s", "--probe", "go,goroutine"];
        let finished = Leaktrace::record(service.pid(), args).wait();
        let goroutines = &finished.report()["goroutines"];
        assert_eq!(goroutines["summary"]["leak"], 0, "{goroutines:#}");
        for way in [
            "chanSend",
            "selectEmpty",
            "sleep",
            "selectTwo",
            "systemCall",
        ] {
            let blocked = blocked_in(goroutines, way);
            assert_eq!(
                (blocked.len(), count_of(&blocked)),
                (1, EACH),
                "{goroutines:#}"
            );
            assert_eq!(blocked[0]["verdict"], "steady", "{:#}", blocked[0]);
        }
        let waiting = blocked_in(goroutines, "chanSend")[0];
        assert!(
            waiting["oldest_wait_s"].as_f64().unwrap() > 10.0,
            "{waiting:#}"
        );
        assert_eq!(
            (&waiting["arrived"], &waiting["left"]),
            (&0.into(), &0.into())
        );

        let site = &goroutines["creation_sites"][0];
        assert_eq!(
            site["created_by"]["function"], "main.churn",
            "{goroutines:#}"
        );
        let (created, exited) = (site["created"].as_i64(), site["exited"].as_i64());
        let (created, exited) = (created.unwrap(), exited.unwrap());
        assert!(created > 1000, "{created} created");
        // Each waits for the sixteen it has made.
        assert!(
            (created - exited).abs() <= 64,
            "{created} created, {exited} ended"
        );
    }
}

/// Tens of thousands of goroutines are read again and again: no thread of the target is ever stopped,
/// and its own scheduler is not late more than it is anyway.
#[test]
fn the_target_is_never_stopped() {
    let args = ["-senders", "79399", "-spin", "0", "-churn", "0"];
    let mut service = Service::start("blocked-1.27.3-nopprof", args);
    service.truth("goroutines");
    let pid = service.pid();
    let done = AtomicBool::new(false);
    let gaps = thread::scope(|scope| {
        let over = Over(&done);
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_runs_freely(pid);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let mut gaps = Vec::new();
        // One at the beginning and one at the end; between them as the machine's load lets it.
        let mut censuses = 0;
        while censuses < 9 || gaps.len() < 5 {
            let mut gap = |during: &mut dyn FnMut()| {
                service.say("forget");
                service.line();
                during();
                service.say("worst");
                let said: Value = serde_json::from_str(&service.line()).unwrap();
                said["worst_gap_ms"].as_f64().unwrap()
            };
            let without = gap(&mut || thread::sleep(Duration::from_secs(2)));
            let during = gap(&mut || {
                let args = ["-d", "2s", "--interval", "100ms", "--probe", "go"];
                let finished = Leaktrace::record(pid, args).wait();
                let report = finished.report();
                let taken = report["goroutines"]["censuses"].as_u64().unwrap();
                assert!(taken >= 2);
                censuses += taken;
            });
            gaps.push((without, during));
        }
        drop(over);
        watcher.join().unwrap();
        gaps
    });
    // The machine's own noise is in both; a stop for a census would be in every one of `during`.
    let least = gaps
        .iter()
        .map(|(_, during)| *during)
        .fold(f64::MAX, f64::min);
    let most = gaps.iter().map(|(without, _)| *without).fold(0.0, f64::max);
    assert!(
        least <= most.max(20.0) * 3.0,
        "lateness without and during, ms: {gaps:?}"
    );
    assert!(service.is_running());
}

/// Says that it is over when it goes, also by a panic: the scope would wait for its watcher for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// No thread is stopped or traced.
fn assert_runs_freely(pid: i32) {
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].trim().to_owned()
        };
        assert!(!field("State:").starts_with(['t', 'T']), "{status}");
        assert_eq!(field("TracerPid:"), "0");
    }
}
