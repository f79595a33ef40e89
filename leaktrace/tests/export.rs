//! Exports of captures recorded from real processes: each adds up to the report, and nothing that a
//! program calls its functions can do harm in any of them.

use std::collections::BTreeMap;

use leaktrace::{
    capture::Capture,
    export::{self, Value},
    report::{self, Kind, Report, ReportOptions},
};
use serde_json::Value as Json;

const VALUES: [Value; 5] = [
    Value::AllocObjects,
    Value::AllocSpace,
    Value::InuseObjects,
    Value::InuseSpace,
    Value::Growth,
];

fn build(bytes: &[u8]) -> Report {
    let capture = Capture::read(bytes).expect("a capture of ours");
    report::build(
        &capture,
        capture.symbols.as_ref(),
        &ReportOptions::default(),
    )
}

fn reload() -> Report {
    build(include_bytes!("captures/reload.leaktrace"))
}

fn vm() -> Report {
    build(include_bytes!("captures/vm.leaktrace"))
}

/// Names that mean something to one format or another.
fn hostile() -> Report {
    let names = [
        "a;b 12",
        "new\nline\r\ttab\0nul\x1b[31m",
        "</script><script>alert(1)</script>",
        "\"quoted\" & 'apos' <b>",
        "\u{202e}reversed \u{ffff}\u{fffe}\u{85}",
        "",
        "{\"json\": [1,",
        "name 1e9",
    ];
    let mut report = reload();
    let sites = report.sites.iter_mut().flat_map(|site| &mut site.stack);
    for (index, frame) in sites.enumerate() {
        frame.function = Some(names[index % names.len()].to_owned());
        frame.file = Some(format!("/dir/{}.go", names[(index + 3) % names.len()]));
        frame.module = frame.file.clone();
    }
    report
}

/// What the sites of a report that add up come to.
fn total(report: &Report, value: Value) -> i64 {
    export::sites(report).map(|(_, site)| value.of(site)).sum()
}

fn folded(report: &Report, value: Value) -> String {
    let mut out = Vec::new();
    export::folded::write(report, value, &mut out).expect("memory does not fail");
    String::from_utf8(out).expect("folded stacks are text")
}

fn speedscope(report: &Report, value: Value) -> Json {
    let mut out = Vec::new();
    export::speedscope::write(report, value, &mut out).expect("memory does not fail");
    serde_json::from_slice(&out).expect("speedscope's files are JSON")
}

/// The stacks of folded lines with their figures, read as inferno reads them: figures from the end.
fn parse(folded: &str) -> BTreeMap<&str, Vec<i64>> {
    let figures = |line| {
        let (mut stack, mut figures) = (line, Vec::new());
        while let Some((head, tail)) = stack.rsplit_once(char::is_whitespace)
            && let Ok(figure) = tail.parse()
        {
            figures.insert(0, figure);
            stack = head;
        }
        (stack, figures)
    };
    let stacks: BTreeMap<_, _> = folded.lines().map(figures).collect();
    assert_eq!(stacks.len(), folded.lines().count(), "a stack comes once");
    stacks
}

#[test]
fn folded_stacks_add_up_to_the_report() {
    for report in [reload(), vm(), hostile()] {
        for value in VALUES {
            let text = folded(&report, value);
            let stacks = parse(&text);
            let sum: i64 = match value {
                Value::Growth => stacks.values().map(|figures| figures[1] - figures[0]).sum(),
                _ => stacks.values().map(|figures| figures[0]).sum(),
            };
            assert_eq!(sum, total(&report, value), "{value}");
            let columns = if value == Value::Growth { 2 } else { 1 };
            assert!(stacks.values().all(|figures| figures.len() == columns));
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}

#[test]
fn stacks_go_from_the_kind_to_the_line_that_leaks() {
    let text = folded(&reload(), Value::InuseSpace);
    let largest = text
        .lines()
        .max_by_key(|line| parse(line).values().next().unwrap()[0]);
    insta::assert_snapshot!(largest.unwrap());
}

#[test]
fn speedscope_has_every_value() {
    for report in [reload(), vm(), hostile()] {
        for value in VALUES {
            let file = speedscope(&report, value);
            let profiles = file["profiles"].as_array().unwrap();
            let sum = |name: &str| -> i64 {
                let profile = profiles.iter().find(|profile| profile["name"] == name);
                let weights = profile.unwrap()["weights"].as_array().unwrap().iter();
                weights.map(|weight| weight.as_i64().unwrap()).sum()
            };
            let sum = match value {
                Value::Growth => sum("growth") - sum("shrinkage"),
                _ => sum(&value.to_string()),
            };
            assert_eq!(sum, total(&report, value), "{value}");
            let shown = file["activeProfileIndex"].as_u64().unwrap() as usize;
            assert_eq!(profiles[shown]["name"], value.to_string());
        }
    }
}

#[test]
fn the_heap_is_not_counted_twice() {
    let report = reload();
    let counted: Vec<_> = export::sites(&report).map(|(_, site)| site).collect();
    assert!(counted.iter().all(|site| site.kind == Kind::GoHeap));
    let left_out = export::left_out(&report).expect("the runtime maps its heap");
    insta::assert_snapshot!(left_out);
    assert!(export::left_out(&vm()).is_none());

    let mut mappings = reload();
    mappings.sites.retain(|site| site.kind == Kind::Mmap);
    assert_eq!(export::sites(&mappings).count(), mappings.sites.len());
}
