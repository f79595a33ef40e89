//! What happens to the whole machine, which is a guest's: `cargo xtask vm` runs these, `cargo test` by itself does not.

use std::{fs, process::Command, thread::sleep, time::Duration};

use leaktrace_tests::{Hoard, Leaktrace, assert_nothing_left};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What a recording says in which `event` happens, with `hoard` at work before and after: all its blocks.
fn record(event: impl FnOnce()) -> Value {
    let mut hoard = Hoard::start();
    let run = Leaktrace::record(hoard.pid(), ["--interval", "500ms"]);
    hoard.go();
    hoard.wait_for(200);
    event();
    hoard.wait_for(200);
    hoard.signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(1));
    let report = hoard.ended(run);
    assert_eq!(report["losses"].get("ring_buffer_full"), None);
    assert_nothing_left();
    report
}

/// Sets the wall clock, in seconds since 1970.
fn set_clock(seconds: i64) {
    let date = Command::new("date")
        .args(["-s", &format!("@{seconds}")])
        .output()
        .unwrap();
    assert!(date.status.success(), "{date:?}");
}

fn clock() -> i64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    now.as_secs() as i64
}

/// The time of a recording does not run backwards, nor stand still.
#[test]
fn the_clock_is_set_back() {
    let before = clock();
    let report = record(|| set_clock(before - 3600));
    assert!(clock() < before - 3000);
    set_clock(clock() + 3600);
    let window = &report["window"];
    let duration = window["duration_s"].as_f64().unwrap();
    assert!((1.0..300.0).contains(&duration), "{window}");
    let started = window["start_unix_ns"].as_i64().unwrap() / 1_000_000_000;
    assert!((before - 60..=before + 60).contains(&started), "{window}");
    let mut limits = report["limits"].as_array().unwrap().clone();
    // A real-time kernel before 6.7 has one by what it is, and a guest whose host is busy another, whatever the clock
    // does: an hour is not what it tells of.
    limits.retain(|limit| {
        let reason = limit["reason"].to_string();
        let pause = reason.split_once("leaktrace did not run");
        let is_short =
            pause.is_some_and(|(_, rest)| !rest.contains(" h:") && !rest.contains(" h "));
        !(is_short || reason.contains("preempts its own code"))
    });
    assert!(limits.is_empty(), "{limits:#?}");
}

/// The machine sleeps to memory and is woken by its clock: the recording goes on, and says for how long it slept.
#[test]
fn the_machine_is_suspended() {
    let alarm = "/sys/class/rtc/rtc0/wakealarm";
    let count = "/sys/power/wakeup_count";
    // An alarm that comes before the machine sleeps keeps it awake (Linux, Documentation/ABI/testing/sysfs-power).
    let sleeps = |seconds: &str| {
        fs::write(count, fs::read(count).unwrap())?;
        fs::write(alarm, "0")?;
        fs::write(alarm, seconds)?;
        fs::write("/sys/power/state", "mem")
    };
    let report = record(|| {
        let tries = ["+6", "+12", "+24"].into_iter();
        let kept_awake: Vec<_> = tries.map_while(|seconds| sleeps(seconds).err()).collect();
        assert!(kept_awake.len() < 3, "{kept_awake:?}");
    });
    let limits = report["limits"].to_string();
    assert!(limits.contains("the machine was suspended for"), "{limits}");
}
