//! Many blocks and many stacks of a native program: memory stays bounded, and what is not kept one by one is
//! sampled and told, or counted by cause.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::BufReader,
};

use leaktrace::capture::{Capture, Ended, schema::Site};
use leaktrace_tests::{Finished, Leaktrace, Service, assert_nothing_left, told};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// The most memory that process `pid` has had resident, in bytes.
fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("the kernel tells").parse::<u64>().unwrap() << 10
}

/// Kernel memory of the BPF maps that process `pid` holds, in bytes.
fn map_memory(pid: i32) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs");
    let of_map = |text: String| {
        text.contains("map_type:").then_some(())?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("memlock:"))?;
        line.trim().parse::<u64>().ok()
    };
    files
        .filter_map(|file| of_map(fs::read_to_string(file.ok()?.path()).ok()?))
        .sum()
}

/// Records while `sizes` does `times` what `line` says; what leaktrace took meanwhile is bounded.
fn record(service: &mut Service, line: &str, times: u32, options: &[&str]) -> Finished {
    let arguments = [&["--probe", "malloc"], options].concat();
    let recording = Leaktrace::record(service.pid(), arguments);
    for _ in 0..times {
        service.ask(line);
    }
    let (peak, maps) = (peak_memory(recording.pid()), map_memory(recording.pid()));
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    println!(
        "`{line}` {options:?}: {} MiB, maps {} MiB",
        peak / MIB,
        maps / MIB
    );
    assert!(peak < 256 * MIB, "{peak} bytes resident");
    assert!((MIB..64 * MIB).contains(&maps), "{maps} bytes of maps");
    finished
}

fn in_function<'a>(report: &'a Value, name: &str) -> Vec<&'a Value> {
    let has = |site: &&Value| {
        let mut frames = site["stack"].as_array().unwrap().iter();
        frames.any(|frame| frame["function"] == name)
    };
    report["sites"]
        .as_array()
        .unwrap()
        .iter()
        .filter(has)
        .collect()
}

/// There is room for 65,536 live blocks. The first half of it takes every block, the rest samples.
#[test]
fn ten_million_live_blocks() {
    // Ten million in a row are more than the default budget allows for.
    for options in [["--sample", "all"].as_slice(), &["--force"]] {
        let mut service = Service::start("sizes", [""; 0]);
        service.line();
        let report = record(&mut service, "crowd 1000000", 10, options).report();
        let [allocs, bytes, ..] = told(service.newest())["crowd"];
        assert_eq!(allocs, 10_000_000);
        assert_eq!(report["losses"], json!({}));
        let limits = report["limits"].to_string();
        assert!(
            limits.contains("one in 16.0 KiB") && limits.contains("one in 128.0 KiB"),
            "{limits}"
        );
        let sites = in_function(&report, "crowd");
        assert_eq!(sites.len(), 1);
        let estimate = &sites[0]["estimate"];
        let live = sites[0]["live_bytes"].as_f64().unwrap();
        let objects = sites[0]["live_objects"].as_f64().unwrap();
        let [low, high] = ["low_bytes", "high_bytes"].map(|end| estimate[end].as_f64().unwrap());
        println!("{live} of {bytes} ({low} to {high})");
        // 2 MB from the 16,384 samples of 16 KiB, 5.3 MB from the 1,700 of 128 KiB: 1.2 %.
        assert!((live / bytes as f64 - 1.0).abs() < 0.06, "{live}");
        assert!((objects / allocs as f64 - 1.0).abs() < 0.06, "{objects}");
        assert!(
            low < live && live < high && high - low < 0.08 * live,
            "{estimate}"
        );
        assert_eq!(sites[0]["estimate"]["sampled"], true);
        assert!(service.is_running());
    }
    assert_nothing_left();
}

/// Up to 128 frames are kept: the calls, `malloc` below them, and `main` and what called it above.
#[test]
fn five_thousand_stacks_of_127_frames() {
    const STACKS: usize = 5000;
    for (calls, is_cut) in [(121, false), (140, true)] {
        let mut service = Service::start("sizes", [""; 0]);
        service.line();
        let line = format!("deep {STACKS} {calls}");
        let finished = record(&mut service, &line, 1, &["--sample", "all"]);
        let file = File::open(&finished.file).expect("the capture is there");
        let capture = Capture::read(BufReader::new(file)).expect("the capture is well formed");
        let sites = capture
            .intervals
            .iter()
            .flat_map(|interval| &interval.sites);
        let sites: HashMap<u32, &Site> = sites.map(|site| (site.id, site)).collect();
        let deltas = capture
            .intervals
            .iter()
            .flat_map(|interval| &interval.deltas);
        let mut stacks = HashSet::new();
        for delta in deltas {
            let site = sites[&delta.site];
            assert_eq!((delta.allocs, delta.alloc_bytes, delta.frees), (1, 100, 0));
            // Of the last of 128 it is not known whether it is the outermost.
            assert_eq!(site.pcs.len(), if is_cut { 128 } else { 127 });
            assert_eq!(site.truncated, is_cut);
            assert_eq!(site.incomplete, "");
            assert!(stacks.insert(&site.pcs), "two sites of one stack");
        }
        assert_eq!(stacks.len(), STACKS);
        let Ended::Closed(close) = &capture.how_it_ended else {
            panic!("{:?}", capture.how_it_ended)
        };
        let losses: Vec<_> = close
            .losses
            .iter()
            .map(|loss| (&*loss.cause, loss.count))
            .collect();
        let expected = is_cut.then_some(("stack_truncated", STACKS as u64));
        assert_eq!(losses, Vec::from_iter(expected));
    }
    assert_nothing_left();
}
