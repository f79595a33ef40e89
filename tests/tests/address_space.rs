//! mmap, munmap, mremap and brk are counted to the byte.

use std::{collections::BTreeMap, fs};

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left};
use serde_json::Value;

/// Live bytes by function and kind.
type Bytes = BTreeMap<(String, String), u64>;

/// The most pages that a mapping of the storm has.
const STORM_PAGES: u64 = 16;

#[test]
fn every_site_is_exact() {
    let mut service = Service::start("vm", [""; 0]);
    assert!(service.line().starts_with("ready "));
    // A uprobe would add a page of the kernel's, which the program would not find in its own sum.
    let run = Leaktrace::record(service.pid(), ["--probe", "vm", "--force"]);
    service.say("go");
    let truth: Value = serde_json::from_str(&service.line()).expect("the truth is JSON");
    run.signal(nix::sys::signal::Signal::SIGINT);
    let report = run.wait().report();

    let mut expected = Bytes::new();
    for site in truth["sites"].as_array().unwrap() {
        add(&mut expected, &site["function"], site);
    }
    let mut seen = Bytes::new();
    for site in report["sites"].as_array().unwrap() {
        let function = site["stack"]
            .as_array()
            .unwrap()
            .iter()
            .map(|frame| &frame["function"])
            .find(|function| {
                expected
                    .keys()
                    .any(|(name, _)| function.as_str() == Some(name))
            });
        match function {
            Some(function) => add(&mut seen, function, site),
            None => assert_eq!(site["live_bytes"], 0, "of no case: {site:#}"),
        }
    }
    let mut losses = report["losses"].as_object().unwrap().clone();
    if preempts_programs() {
        // Its threads preempt one another in these programs. So many calls may be missing, and no more.
        let storm = ("storm".to_owned(), "mmap".to_owned());
        // A kernel that does not count them shows them by calls without a beginning.
        let is_counted = !report["limits"]
            .to_string()
            .contains("not all of these are counted");
        let cause = if is_counted {
            "programs_skipped"
        } else {
            "return_without_entry"
        };
        let skipped = losses.remove(cause).and_then(|n| n.as_u64());
        let off = seen.remove(&storm).unwrap_or(0);
        assert!(off <= skipped.unwrap_or(0) * STORM_PAGES * 4096, "{off}");
    }
    expected.retain(|_, bytes| *bytes > 0);
    seen.retain(|_, bytes| *bytes > 0);
    assert_eq!(seen, expected, "{losses:?}");
    assert!(losses.is_empty(), "{losses:?}");
    assert_nothing_left();
}

/// Whether the kernel may preempt programs of system calls' tracepoints, or what keeps them from running: Linux 7.2 and
/// later, and real-time kernels.
fn preempts_programs() -> bool {
    if fs::read("/sys/kernel/realtime").is_ok_and(|text| text.starts_with(b"1")) {
        return true;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(7), Some(2))
}

fn add(bytes: &mut Bytes, function: &Value, site: &Value) {
    let key = (
        function.as_str().unwrap().to_owned(),
        site["kind"].as_str().unwrap().to_owned(),
    );
    *bytes.entry(key).or_default() += site["live_bytes"].as_u64().unwrap();
}
