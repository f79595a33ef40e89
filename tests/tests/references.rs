//! `record --retention` of native programs: blocks to which nothing points any more are told from those that are
//! kept, as LeakSanitizer does it at the end of a program, and by what they are kept.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use leaktrace_tests::{Finished, Leaktrace, Service, assert_nothing_left, run, sample};
use nix::sys::signal::Signal;
use serde_json::Value;

const EACH: u64 = 64;

fn report(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let file = finished.file.to_str().unwrap();
    let output = run([
        "report", file, "--format", "json", "-n", "1000", "--kind", "malloc",
    ]);
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

fn samples(of: &Value) -> u64 {
    of["samples"].as_u64().unwrap_or(0)
}

/// What was found of a site: how many are alive, how many lost, and by which kinds of holders the others are kept.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    all: u64,
    lost: u64,
    kept: BTreeMap<String, u64>,
}

/// By innermost function.
fn found(report: &Value) -> BTreeMap<String, Found> {
    let mut by_function: BTreeMap<String, Found> = BTreeMap::new();
    for site in report["sites"].as_array().unwrap() {
        let retention = &site["retention"];
        let function = site["stack"][0]["function"].as_str().unwrap_or_default();
        let found = by_function.entry(function.to_owned()).or_default();
        found.all += samples(&retention["total"]);
        found.lost += samples(&retention["lost"]) + samples(&retention["lost_behind"]);
        for holder in retention["holders"].as_array().into_iter().flatten() {
            let name = holder["symbol"].as_str().or(holder["kind"].as_str());
            let kept = found.kept.entry(name.unwrap().to_owned()).or_default();
            *kept += samples(&holder["amount"]);
        }
    }
    by_function
}

/// Records what `kept` does.
fn recorded() -> Finished {
    let mut service = Service::start("kept", [""; 0]);
    service.line();
    let run = Leaktrace::record(service.pid(), ["--retention", "--probe", "malloc"]);
    service.say("go");
    service.line();
    run.signal(Signal::SIGINT);
    let finished = run.wait();
    assert!(service.is_running(), "the target did not survive");
    finished
}

#[test]
fn lost_blocks_are_told_from_kept_ones_and_by_what_these_are_kept() {
    let report = report(&recorded());
    let found = found(&report);
    for function in ["lost", "lost_list", "lost_ring"] {
        let of = &found[function];
        assert_eq!((of.all, of.lost), (EACH, EACH), "{function}: {of:?}");
    }
    for (function, holder) in [
        ("kept_in_global", "in_global"),
        ("kept_in_list", "in_list"),
        ("kept_by_inside", "inside"),
        ("kept_in_block", "in_block"),
        ("kept_on_stack", "stack"),
        ("kept_in_thread", "stack"),
        ("kept_in_register", "registers"),
        ("kept_in_mapping", "memory"),
    ] {
        let kept = BTreeMap::from([(holder.to_owned(), EACH)]);
        let expected = Found {
            all: EACH,
            lost: 0,
            kept,
        };
        assert_eq!(found[function], expected, "{function}");
    }
    assert_eq!(report["retention"][0]["pass"]["passes"], 2, "{report:#}");
    assert_nothing_left();
}

/// The same program with LeakSanitizer: the same blocks are lost, but for those that only a mapping of the program's
/// own points to, where LeakSanitizer does not look.
#[test]
fn leak_sanitizer_finds_the_same() {
    let mut sanitized = Command::new(sample("kept-sanitized"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    sanitized.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = sanitized.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let mut theirs: BTreeMap<&str, u64> = BTreeMap::new();
    // Direct leak of 15360 byte(s) in 64 object(s) allocated from:
    //     #0 … in __interceptor_malloc …
    //     #1 0x… in lost …/kept.c:35
    for leak in said.split("leak of ").skip(1) {
        let objects = leak.split(" in ").nth(1).unwrap();
        let objects: u64 = objects.split(' ').next().unwrap().parse().unwrap();
        let caller = leak
            .lines()
            .find(|line| line.trim_start().starts_with("#1 "));
        let function = caller.unwrap().split(" in ").nth(1).unwrap();
        let function = function.split(' ').next().unwrap();
        *theirs.entry(function).or_default() += objects;
    }
    assert_eq!(theirs.remove("kept_in_mapping"), Some(EACH), "{said}");
    let report = report(&recorded());
    let ours = found(&report);
    let ours = ours.iter().filter(|(_, found)| found.lost > 0);
    let ours: BTreeMap<&str, u64> = ours
        .map(|(name, found)| (name.as_str(), found.lost))
        .collect();
    assert_eq!(ours, theirs, "{said}");
}

/// What is freed while it is looked for was pointed to until then, and is not lost.
#[test]
fn what_is_freed_meanwhile_is_not_lost() {
    let all = [
        "--retention",
        "--probe",
        "malloc",
        "--sample",
        "all",
        "--force",
    ];
    // The search gives way to other work, and ten seconds later all are freed: that it met some of them may take
    // more than one recording.
    let mut recordings = (0..5).map(|_| {
        let mut service = Service::start("kept", [""; 0]);
        service.line();
        let run = Leaktrace::record(service.pid(), all);
        service.say("fade");
        service.line();
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        assert!(service.is_running(), "the target did not survive");
        let report = report(&finished);
        let of = found(&report);
        let fading = of.get("kept_for_a_while");
        assert_eq!(fading.map_or(0, |fading| fading.lost), 0, "{fading:?}");
        println!("{fading:?}");
        // Some of them were freed after they had been asked for.
        let asked = report["retention"][0]["pass"]["reached_objects"].as_u64();
        fading.is_some_and(|fading| fading.all > 1000 && asked > Some(fading.all))
    });
    assert!(recordings.any(|met_some| met_some));
    assert_nothing_left();
}

/// Blocks that come and go while they are looked for are not lost; what is leaked meanwhile is.
#[test]
fn what_turns_over_meanwhile_is_not_lost() {
    // So many allocations between those of a cache that its youngest blocks live for some ten seconds.
    let mut service = Service::start("turnover", ["60000"]);
    assert!(service.line().starts_with("ready "));
    let all = [
        "--probe",
        "malloc",
        "--sample",
        "all",
        "--force",
        "-d",
        "4s",
        "--retention",
    ];
    // The search gives way to other work: that some young blocks were there all the time may take more than one
    // recording.
    let mut recordings = (0..5).map(|_| {
        let finished = Leaktrace::record(service.pid(), all).wait();
        assert!(service.is_running(), "the target did not survive");
        let found = found(&report(&finished));
        for function in ["turns", "young", "middle", "middle_too", "old"] {
            let lost = found.get(function).map_or(0, |found| found.lost);
            assert_eq!(lost, 0, "{function}: {found:?}");
        }
        let leaks = &found["leaks"];
        // The last one is in a variable.
        assert!(leaks.all > 10 && leaks.lost + 1 >= leaks.all, "{leaks:?}");
        println!("{found:?}");
        found["young"].all
    });
    assert!(recordings.any(|young| young > 10));
    assert_nothing_left();
}

/// Where it is not known which blocks live, nothing is called lost, and it is said.
#[test]
fn in_windows_nothing_is_called_lost() {
    let mut service = Service::start("turnover", [""; 0]);
    assert!(service.line().starts_with("ready "));
    let finished = Leaktrace::record(service.pid(), ["-d", "3s", "--retention"]).wait();
    let report = report(&finished);
    assert_eq!(report["malloc"]["method"], "windows");
    let limits = report["limits"].to_string();
    assert!(
        limits.contains("what still points to native blocks"),
        "{limits}"
    );
    assert!(limits.contains("between windows"), "{limits}");
    assert!(report["retention"].is_null(), "{report:#}");
    assert!(service.is_running(), "the target did not survive");
}
