//! What leaktrace reads of Go's own heap profile is what the program says itself: `/debug/pprof/heap`
//! of the same collection, function by function and line by line, un-sampled in the same way.

use std::collections::BTreeMap;

use leaktrace_tests::{Service, assert_nothing_left, go_versions, record_what_is_served};
use serde_json::Value;

/// Long enough for every site to have some samples.
const WINDOW_S: f64 = 6.0;

/// Bytes in use by the innermost frame that is not the runtime's, and the buckets that they are of.
type Profile = BTreeMap<String, (f64, u32)>;

#[test]
fn in_use_equals_what_the_program_serves() {
    for version in go_versions() {
        let name = format!("reload-{version}");
        let mut service = Service::start(&name, ["-http=127.0.0.1:0", "-leak-limit-bytes=0"]);
        let path = "/debug/pprof/heap?debug=1";
        let (finished, served) = record_what_is_served(&mut service, WINDOW_S, path);
        let report = finished.report();
        let served = String::from_utf8(served).expect("a profile in text");

        let (rate, expected) = parse(&served);
        assert_eq!(report["target"]["go"]["sample_rate"], rate, "{name}");
        let seen = in_use(&report);
        let functions = |profile: &Profile| profile.keys().cloned().collect::<Vec<_>>();
        assert_eq!(functions(&seen), functions(&expected), "{name}");
        assert!(expected.len() > 2, "{name}: {expected:?}");
        for (frame, (bytes, buckets)) in expected {
            let (found, sites) = seen[&frame];
            // A site is rounded to whole bytes. Where the samples come to half a byte (512 bytes at one in 512 KiB
            // are 524,544 and 1/24), the order of the sums decides which way.
            let rounding = 0.5 * f64::from(sites) + bytes * 1e-12;
            assert!(
                (found - bytes).abs() <= rounding,
                "{name}: {frame}: {found} at {sites} sites, {bytes} in {buckets} buckets"
            );
        }
    }
    assert_nothing_left();
}

/// What the runtime allocates for itself, together: where no frame is the program's, the profile shows
/// the allocator's too, which our report leaves out.
const RUNTIME: &str = "runtime";

/// What has survived the last collection, by frame.
fn in_use(report: &Value) -> Profile {
    let mut profile = Profile::new();
    let sites = report["sites"].as_array().unwrap().iter();
    for site in sites.filter(|site| site["kind"] == "go_heap") {
        let bytes = site["proven_bytes"].as_f64().unwrap_or_default();
        if bytes == 0.0 {
            continue;
        }
        let frames = site["stack"].as_array().unwrap();
        let function = |frame: &&Value| !is_runtime(frame["function"].as_str().unwrap_or("?"));
        let name = match frames.iter().find(function) {
            Some(frame) => format!(
                "{}:{}",
                frame["function"].as_str().unwrap_or("?"),
                frame["line"]
            ),
            None => RUNTIME.to_owned(),
        };
        add(&mut profile, name, bytes);
    }
    profile
}

/// The profile as text, un-sampled as `go tool pprof` does it (runtime/pprof, `scaleHeapSample`), and
/// its rate. A record is `OBJECTS: BYTES [ALLOCATED…] @ PCS`, then a line for each frame, those of the
/// runtime at the innermost end left out (`printStackRecord`).
fn parse(text: &str) -> (u64, Profile) {
    let head = text.lines().next().expect("a profile has a first line");
    let doubled = head
        .rsplit("heap/")
        .next()
        .and_then(|rate| rate.parse().ok());
    let rate: u64 = doubled.map(|doubled: u64| doubled / 2).expect(head);
    let mut profile = Profile::new();
    let mut in_use = None;
    for line in text.lines().skip(1) {
        if line.starts_with("# runtime.MemStats") {
            break;
        }
        if let Some(frame) = line.strip_prefix("#\t") {
            let Some(bytes) = in_use.take() else {
                continue;
            };
            let mut columns = frame.split('\t').skip(1);
            let function = columns.next().and_then(|column| column.rsplit_once('+'));
            let place = columns.last().and_then(|column| column.rsplit_once(':'));
            let (function, line) = (function.expect(line).0, place.expect(line).1);
            let name = match is_runtime(function) {
                true => RUNTIME.to_owned(),
                false => format!("{function}:{line}"),
            };
            add(&mut profile, name, bytes);
        } else if let Some((counts, _)) = line.split_once(" [") {
            let (objects, bytes) = counts.split_once(": ").expect(line);
            let (objects, bytes): (f64, f64) = (
                objects.trim().parse().expect(line),
                bytes.parse().expect(line),
            );
            let scale = -1.0 / (-(bytes / objects) / rate as f64).exp_m1();
            in_use = (objects > 0.0).then_some(bytes * scale);
        }
    }
    (rate, profile)
}

fn is_runtime(function: &str) -> bool {
    function.starts_with("runtime.") || function.starts_with("internal/runtime/")
}

fn add(profile: &mut Profile, frame: String, bytes: f64) {
    let sum = profile.entry(frame).or_default();
    sum.0 += bytes;
    sum.1 += 1;
}
