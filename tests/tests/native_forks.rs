//! `--follow-forks`: the blocks of processes that the target makes are counted as its own are, each in its own
//! memory, until they end or become other programs; without the option they are not.

use leaktrace_tests::{Finished, Leaktrace, Service, assert_nothing_left, blocks_of, run, told};
use nix::sys::signal::Signal;
use serde_json::Value;

const SITES: [&str; 5] = [
    "parent_keeps",
    "worker_keeps",
    "worker_turns",
    "grandchild_keeps",
    "ended_keeps",
];

/// Records the program while it makes processes and these work; gives what it says of them.
fn record(arguments: &[&str], is_followed: bool) -> (Finished, Value) {
    let mut service = Service::start("forks", [""; 0]);
    service.line();
    let arguments = [&["--probe", "malloc", "--sample", "all"], arguments].concat();
    let mut recording = Leaktrace::record(service.pid(), arguments);
    service.ask("fork");
    let pids = service.newest()["pids"].as_array().unwrap().len();
    for _ in 0..pids {
        if is_followed {
            recording.wait_until_it_says("follows process ");
        }
    }
    service.ask("work");
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(service.is_running(), "the program did not survive");
    assert_nothing_left();
    (finished, service.newest().clone())
}

#[test]
fn children_are_counted_as_their_parent_is() {
    let (finished, truth) = record(&["--follow-forks"], true);
    let expected = told(&truth);
    assert_eq!(expected.len(), SITES.len(), "{truth}");
    let counted = blocks_of(&finished.file, |name| SITES.contains(&name));
    assert_eq!(counted, expected);
    let report = finished.report();
    // Five processes have freed their copies of a block that is still there in the first.
    assert_eq!(report["losses"], serde_json::json!({"free_of_unseen": 5}));
    let limits = report["limits"].as_array().unwrap();
    let told = limits.iter().find(|limit| {
        let what = limit["what"].as_str().unwrap();
        what == "the beginnings of the processes that it made"
    });
    let told = told.expect("it says what it has not seen")["reason"]
        .as_str()
        .unwrap();
    assert!(
        told.starts_with("5 forks followed, 3 of them to the end"),
        "{told}"
    );
    assert!(told.contains("1 became another program"), "{told}");
}

#[test]
fn without_the_option_they_are_not() {
    let (finished, truth) = record(&[], false);
    let parent = "parent_keeps";
    let counted = blocks_of(&finished.file, |name| SITES.contains(&name));
    let mut expected = told(&truth);
    expected.retain(|name, _| name == parent);
    assert_eq!(counted, expected);
    assert_eq!(finished.report()["losses"], serde_json::json!({}));
}

#[test]
fn a_bound_on_the_cost_is_of_one_process() {
    let output = run(["record", "-p", "1", "--follow-forks", "--max-overhead", "3"]);
    assert_eq!(output.status.code(), Some(2));
}
