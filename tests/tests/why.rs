//! What keeps objects alive: each way of keeping them must be told, nothing may be told of garbage, and
//! both stories must end at the goroutines that are blocked.
//!
//! `LEAKTRACE_GO_VERSIONS`, a list with commas, says for which releases; without it the two that
//! `cargo xtask test` builds.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use leaktrace_tests::{Service, run};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;

const EACH: u64 = 64;

fn versions() -> Vec<String> {
    let asked = std::env::var("LEAKTRACE_GO_VERSIONS").unwrap_or("1.27.3,1.19.8".to_owned());
    asked.split(',').map(str::to_owned).collect()
}

fn why(pid: i32, args: &[&str]) -> Value {
    let pid = pid.to_string();
    let mut all = vec!["why", "-p", &pid, "--format", "json"];
    all.extend(args);
    let output = run(all);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The innermost function of the program itself.
fn site_of(site: &Value) -> &str {
    let frames = site["stack"].as_array().unwrap().iter();
    let mut names = frames.filter_map(|frame| frame["function"].as_str());
    names.find(|name| !name.starts_with("runtime.")).unwrap()
}

fn find<'a>(why: &'a Value, function: &str) -> &'a Value {
    let mut sites = why["sites"].as_array().unwrap().iter();
    let site = sites.find(|site| site_of(site) == function);
    site.unwrap_or_else(|| panic!("no site of {function}: {why:#}"))
}

/// The names of the hops of the largest path.
fn hops(holder: &Value) -> Vec<&Value> {
    holder["paths"][0]["hops"]
        .as_array()
        .unwrap()
        .iter()
        .collect()
}

/// All that is told of a shape must be of one holder, and certain.
fn only_holder<'a>(why: &'a Value, function: &str) -> &'a Value {
    let site = find(why, function);
    assert_eq!(site["total"]["samples"], EACH, "{site:#}");
    let holders = site["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 1, "{site:#}");
    let holder = &holders[0];
    assert_eq!(holder["amount"]["samples"], EACH, "{site:#}");
    for path in holder["paths"].as_array().unwrap() {
        assert_eq!(path["checked"], true, "{path:#}");
    }
    holder
}

fn is_variable(holder: &Value, name: &str, stripped: bool) {
    assert_eq!(holder["kind"], "variable", "{holder:#}");
    let section = holder["section"].as_str().unwrap();
    assert!(
        section.contains("bss") || section.contains("data"),
        "{section}"
    );
    if stripped {
        assert_eq!(holder["symbol"], Value::Null, "{holder:#}");
    } else {
        assert_eq!(holder["symbol"], name, "{holder:#}");
    }
}

/// Too little memory for the table that is needed from the roots on: the search goes back from the objects.
const BACK: [&str; 2] = ["--max-memory", "44MiB"];

/// Both ways lead to the same answer.
fn shapes(version: &str, stripped: bool) {
    let mode = if stripped { "-stripped" } else { "" };
    let mut service = Service::start(&format!("retain-{version}{mode}"), [""; 0]);
    service.line();
    for way in [&[][..], &BACK] {
        let look = |function| {
            let why = why(
                service.pid(),
                &[&["--function", function, "-n", "40"], way].concat(),
            );
            assert_eq!(why["target"]["stripped"], stripped);
            let is_back = why["pass"]["backward_scans"].is_u64();
            assert_eq!(is_back, !way.is_empty(), "{}", why["pass"]);
            why
        };
        let told = look("main.in");
        are_told(&told, stripped);
        is_on_stack(&look("main.onStack"));
        // A variable leads to the channel of `hold`, a timer to those of `tick`; to that of `forget` nothing does.
        let forgotten = only_holder(&told, "main.inForgotten");
        let group = &forgotten["goroutines"];
        assert_eq!(group["blocked_at"]["function"], "main.forget", "{group:#}");
        // A stripped program does not say where processors are, whose buffers may have any address.
        let is_told = &forgotten["forgotten"];
        match (way.is_empty(), stripped) {
            (true, false) => assert_eq!(is_told, true, "{forgotten:#}"),
            (true, true) => assert!(is_told.is_null() || is_told == true, "{forgotten:#}"),
            (false, _) => assert!(is_told.is_null(), "{forgotten:#}"),
        }
    }
    assert!(service.is_running(), "the target did not survive");
}

fn are_told(why: &Value, stripped: bool) {
    for (function, variable) in [
        ("main.inGlobalMap", "main.globalMap"),
        ("main.inGlobalBytes", "main.globalBytes"),
        ("main.inSyncMap", "main.syncMap"),
        ("main.inGrowingSlice", "main.growing"),
        ("main.inCallback", "main.callbacks"),
        ("main.inChannel", "main.queue"),
        ("main.inList", "main.list"),
        ("main.inTimer", "runtime.allp"),
    ] {
        is_variable(only_holder(why, function), variable, stripped);
    }
    let callback = hops(only_holder(why, "main.inCallback"));
    let closure = callback
        .iter()
        .find(|hop| hop["named_by"] == "closure")
        .unwrap();
    assert!(
        closure["name"]
            .as_str()
            .unwrap()
            .starts_with("main.fill.func"),
        "{closure}"
    );
    let list = hops(only_holder(why, "main.inList"));
    assert_eq!(
        list.last().unwrap()["times"],
        serde_json::json!([1, EACH]),
        "{list:#?}"
    );

    let ticker = only_holder(why, "main.inTicker");
    assert_eq!(
        (&ticker["kind"], &ticker["holding"]),
        (&"goroutines".into(), &EACH.into())
    );
    let group = &ticker["goroutines"];
    assert_eq!(group["blocked_at"]["function"], "main.tick", "{group:#}");
    assert_eq!(ticker["forgotten"], Value::Null, "{ticker:#}");

    let finalizer = only_holder(why, "main.inFinalizer");
    assert_eq!(finalizer["kind"], "finalizer", "{finalizer:#}");

    // One of them is being run; the others wait for it.
    let queued = find(why, "main.inFinalizerQueue");
    let running = |holder: &Value| holder["goroutines"]["created_by"]["function"].clone();
    let holders = queued["holders"].as_array().unwrap();
    let runs = holders
        .iter()
        .find(|holder| holder["kind"] == "goroutines")
        .unwrap();
    assert_eq!(running(runs), "runtime.createfing", "{runs:#}");
    assert_eq!(runs["amount"]["samples"], 1);
    if stripped {
        assert_eq!(queued["unreached"]["samples"], EACH - 1, "{queued:#}");
        let limits = why["limits"].to_string();
        assert!(
            limits.contains("finalizers whose objects have died"),
            "{limits}"
        );
    } else {
        let waits = holders
            .iter()
            .find(|holder| holder["kind"] == "finalizer_queue")
            .unwrap();
        assert_eq!(waits["amount"]["samples"], EACH - 1, "{waits:#}");
    }

    let garbage = find(why, "main.inNothing");
    assert_eq!(garbage["unreached"]["samples"], EACH, "{garbage:#}");
    assert!(
        garbage["holders"].as_array().unwrap().is_empty(),
        "{garbage:#}"
    );
}

fn is_on_stack(why: &Value) {
    let stack = only_holder(why, "main.onStack");
    assert_eq!(
        (&stack["kind"], &stack["holding"]),
        (&"goroutines".into(), &EACH.into())
    );
    let group = &stack["goroutines"];
    let at = &group["blocked_at"];
    assert_eq!(at["function"], "main.hold", "{group:#}");
    let source = include_str!("../targets/go/retain/retain.go");
    let line = at["line"].as_u64().unwrap() as usize;
    assert!(
        source
            .lines()
            .nth(line - 1)
            .unwrap()
            .contains("hold blocks here"),
        "line {line}"
    );
    assert_eq!(group["created_by"]["function"], "main.fill");
    assert_eq!(stack["forgotten"], Value::Null, "{stack:#}");
}

#[test]
fn every_way_of_keeping_objects_is_told() {
    for version in versions() {
        shapes(&version, false);
    }
}

#[test]
fn so_it_is_of_stripped_programs() {
    for version in versions() {
        shapes(&version, true);
    }
}

/// The paths to the nodes of a list have a million hops, and every one is looked for.
#[test]
fn a_list_is_followed_to_its_end() {
    const NODES: f64 = 1e6;
    for version in versions() {
        let mut service = Service::start(&format!("objects-{version}"), [""; 0]);
        service.line();
        service.say(&NODES.to_string());
        service.line();
        let why = why(service.pid(), &["--function", "main.allocate"]);
        let site = find(&why, "main.allocate");
        for not_held in ["moved", "unchecked", "unreached"] {
            assert_eq!(site[not_held]["samples"], 0, "{not_held} {site:#}");
        }
        let holder = &site["holders"][0];
        is_variable(holder, "main.kept", false);
        let hops = hops(holder);
        let times = |hop: usize, bound: usize| hops[hop]["times"][bound].as_f64().unwrap();
        assert_eq!((times(0, 0), times(2, 1)), (32.0, 32.0), "{holder:#}");
        // As many as there are between the ends of the path to one of the last nodes.
        let most = times(1, 1);
        assert!(most > 0.99 * NODES && most < NODES, "{holder:#}");
    }
}

/// The goroutines that keep most of the site's bytes.
fn story(target: &str, site: &str, objects: f64) -> (Service, Value) {
    let limit = format!("-leak-limit-bytes={}", 24 << 20);
    let mut service = Service::start(target, ["-leak-bytes-per-s=33554432".to_owned(), limit]);
    service.wait_for("leaked_objects", objects);
    let look = |way: &[&str]| {
        let why = why(
            service.pid(),
            &[&["--function", site, "-n", "1"], way].concat(),
        );
        let found = find(&why, site).clone();
        let holder = found["holders"][0].clone();
        let share = |of: &Value| of["bytes"].as_f64().unwrap();
        assert_eq!(holder["kind"], "goroutines", "{found:#}");
        assert!(
            share(&holder["amount"]) > 0.9 * share(&found["total"]),
            "{found:#}"
        );
        holder
    };
    let (holder, back) = (look(&[]), look(&BACK));
    for what in ["wait_reason", "blocked_at", "created_by"] {
        assert_eq!(back["goroutines"][what], holder["goroutines"][what]);
    }
    let last = |holder: &Value| hops(holder).last().unwrap()["name"].clone();
    assert_eq!(last(&back), last(&holder));
    assert!(service.is_running(), "the target did not survive");
    (service, holder)
}

/// The second story: the sync.Map of a goroutine that waits for ever.
#[test]
fn the_table_is_kept_by_those_who_wait_for_done() {
    for version in versions() {
        for mode in ["", "-stripped", "-pie", "-cgo", "-static"] {
            let target = format!("reload-{version}{mode}");
            let (_service, holder) = story(&target, "main.(*rowCache).Store", 40_000.0);
            let group = &holder["goroutines"];
            assert_eq!(group["wait_reason"], "chan receive");
            assert_eq!(
                group["blocked_at"]["function"],
                "main.(*reloader).frequencyControl"
            );
            assert_eq!(group["created_by"]["function"], "main.(*reloader).subTask");
            let channel = &group["channel"];
            assert_eq!(
                (&channel["capacity"], &channel["closed"]),
                (&0.into(), &false.into())
            );
            assert_eq!(
                (&channel["senders"], &channel["receivers"]),
                (&0.into(), &group["count"])
            );
            // The reloader has it too, and that main has.
            assert_eq!(holder["forgotten"], Value::Null, "{holder:#}");
            let path = hops(&holder);
            assert!(path.len() > 3, "{path:#?}");
            let row = path.last().unwrap();
            assert_eq!(row["name"], "main.Row", "{row:#}");
            // The variable on the stack, and its type, are in the debug information only.
            let first = (&path[0]["via"], &path[0]["name"]);
            if mode == "-stripped" {
                assert_eq!(first, (&Value::Null, &"48 B object".into()), "{path:#?}");
            } else {
                assert_eq!(
                    first,
                    (&"cache".into(), &"main.rowCache".into()),
                    "{path:#?}"
                );
            }
        }
    }
}

/// The first story: what a blocked sender has in its hands.
#[test]
fn the_match_is_kept_by_those_who_send_it() {
    for version in versions() {
        for mode in ["", "-stripped"] {
            let target = format!("pipeline-{version}{mode}");
            let (_service, holder) = story(&target, "main.(*search).filter", 5_000.0);
            let group = &holder["goroutines"];
            assert_eq!(group["wait_reason"], "chan send");
            assert_eq!(group["blocked_at"]["function"], "main.(*search).filter");
            assert_eq!(group["created_by"]["function"], "main.(*pipeline).leak");
            assert_eq!(group["channel"]["receivers"], 0);
        }
    }
}

/// Without a sampler nothing says which objects are of which site, but the whole heap can be asked for,
/// and one object.
#[test]
fn without_a_sampler_the_heap_can_be_asked_for() {
    let limit = format!("-leak-limit-bytes={}", 24 << 20);
    let mut service = Service::start(
        "reload-1.27.3-nopprof",
        ["-leak-bytes-per-s=33554432", &limit],
    );
    service.wait_for("leaked_objects", 40_000.0);
    let pid = service.pid().to_string();
    let refused = run(["why", "-p", &pid, "--site", "1"]);
    assert_eq!(refused.status.code(), Some(6));
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(stderr.contains("its heap sampler is off"), "{stderr}");

    let output = run(["goroutines", "-p", &pid, "--format", "json"]);
    let census: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut groups = census["groups"].as_array().unwrap().iter();
    let blocked = groups
        .find(|group| group["wait_reason"] == "chan receive")
        .unwrap();
    let address = blocked["channel"]["address"].as_u64().unwrap();
    let heap = why(service.pid(), &[]);
    let whole = &heap["sites"][0];
    let holder = &whole["holders"][0];
    let at = &holder["goroutines"]["blocked_at"]["function"];
    assert_eq!(at, "main.(*reloader).frequencyControl", "{whole:#}");
    let bytes = |of: &Value| of["bytes"].as_f64().unwrap();
    let leaked = service.truth("leaked_bytes");
    assert!(
        bytes(&holder["amount"]) > 0.8 * leaked,
        "{leaked} {whole:#}"
    );
    assert!(bytes(&whole["total"]) < heap["pass"]["heap_bytes"].as_f64().unwrap());
    // Somewhere inside.
    let why = why(
        service.pid(),
        &["--address", &format!("{:#x}", address + 8)],
    );
    let site = &why["sites"][0];
    assert_eq!(site["address"], address, "{site:#}");
    assert_eq!(site["holders"][0]["amount"]["samples"], 1, "{site:#}");
    assert_eq!(hops(&site["holders"][0]).last().unwrap()["name"], "channel");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let mut service = Service::start("retain-1.27.3", [""; 0]);
    service.line();
    let pid = service.pid().to_string();
    for (args, words) in [
        (
            &["--max-memory", "1MiB"][..],
            "1048576 are allowed (--max-memory)",
        ),
        (&["--site", "100000"], "there is no site 100000"),
        (
            &["--function", "nobody.has"],
            "has `nobody.has` in its name",
        ),
        (
            &["--address", "0x1000"],
            "`0x1000` is not in an object of the Go heap",
        ),
    ] {
        let output = run(["why", "-p", &pid].iter().chain(args));
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(words), "{stderr}");
    }
    let native = Service::sleeper();
    let output = run(["why", "-p", &native.pid().to_string()]);
    assert_eq!(output.status.code(), Some(6));
}

/// Words of a stopped process's variables and heap, written over and over from outside: numbers, addresses of
/// its own memory, the ends of the address space.
fn scribble(pid: i32, until: &AtomicBool, rounds: &AtomicU64) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.contains(" rw-p ") && !line.contains("[stack]"))
        .filter_map(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).ok();
            Some((address(start)?, address(end)?))
        })
        .collect();
    let path = format!("/proc/{pid}/mem");
    let memory = fs::OpenOptions::new().write(true).open(path).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while !until.load(Relaxed) {
        let mut place = || {
            let (start, end) = ranges[random() as usize % ranges.len()];
            // What the runtime keeps is at the beginning of its mappings.
            let within = (end - start).min(1 << [12, 16, 20, 47][random() as usize % 4]);
            (start + random() % within) & !7
        };
        let (at, to) = (place(), place());
        let word = match random() % 4 {
            0 => random() % 4096,
            1 => u64::MAX - random() % 4096,
            2 => random(),
            _ => to,
        };
        // Memory that was given back meanwhile is none.
        let _ = memory.write_all_at(&word.to_le_bytes(), at);
        rounds.fetch_add(1, Relaxed);
    }
}

/// Is set in the end.
struct Set<'a>(&'a AtomicBool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Processor time of the commands that have ended, in seconds.
fn time_of_children() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    usage.user_time().tv_sec() + usage.system_time().tv_sec()
}

/// A process that rewrites its memory while it is read. It is stopped and rewritten from outside, so that it
/// lives: there is an answer or one line of error, and neither a panic nor an end of the memory.
#[test]
fn memory_that_is_rewritten_meanwhile() {
    let mut service = Service::start("reload-1.27.3", [""; 0]);
    service.line();
    let pid = service.pid();
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let (until, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = time_of_children();
    thread::scope(|scope| {
        scope.spawn(|| scribble(pid, &until, &rounds));
        // Whatever fails here: the scope waits for the thread.
        let _end = Set(&until);
        let mut before = 0;
        for _ in 0..5 {
            for command in [
                &["goroutines"][..],
                &["why"],
                &["why", "--heap"],
                &["why", "--heap", "--max-memory", "44MiB"],
                &["check"],
            ] {
                let pid = pid.to_string();
                let output = run(command.iter().copied().chain(["-p", &pid]));
                let stderr = String::from_utf8_lossy(&output.stderr);
                let code = output.status.code();
                assert!(
                    matches!(code, Some(0 | 1 | 6)),
                    "{command:?}: {code:?} {stderr}"
                );
                assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
                let says = stderr.lines().count();
                assert!(code == Some(0) || says == 1, "{command:?}: {stderr}");
                let now = rounds.load(Relaxed);
                assert!(now > before, "nothing was written");
                before = now;
            }
        }
    });
    assert!(time_of_children() - before < 120);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}
