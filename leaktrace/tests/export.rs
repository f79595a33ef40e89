//! Exports of captures recorded from real processes: each adds up to the report, and nothing that a
//! program calls its functions can do harm in any of them.

mod hostile;

use std::{collections::BTreeMap, io::Read as _, sync::Mutex};

use bytes::Bytes;
use flate2::read::GzDecoder;
use inferno::flamegraph::Options;
use leaktrace::{
    capture::Capture,
    export::{self, Value},
    report::{self, Detailed, Kind, Report, ReportOptions},
};
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, Row},
};
use prost::Message as _;
use serde_json::Value as Json;

const VALUES: [Value; 5] = [
    Value::AllocObjects,
    Value::AllocSpace,
    Value::InuseObjects,
    Value::InuseSpace,
    Value::Growth,
];

fn capture(bytes: &[u8]) -> Capture {
    Capture::read(bytes).expect("a capture of ours")
}

fn reload() -> Capture {
    capture(include_bytes!("captures/reload.leaktrace"))
}

fn vm() -> Capture {
    capture(include_bytes!("captures/vm.leaktrace"))
}

fn hostile() -> Capture {
    let mut capture = reload();
    hostile::rename(&mut capture);
    capture
}

fn captures() -> [Capture; 3] {
    [reload(), vm(), hostile()]
}

fn detailed(capture: &Capture) -> Detailed<'_> {
    report::build_detailed(capture, capture.symbols.as_ref(), &ReportOptions::default())
}

fn build(capture: &Capture) -> Report {
    detailed(capture).report
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
fn parse<'a>(folded: &'a str) -> BTreeMap<&'a str, Vec<i64>> {
    let figures = |line: &'a str| {
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
    for report in captures().iter().map(build) {
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
    let text = folded(&build(&reload()), Value::InuseSpace);
    let largest = text
        .lines()
        .max_by_key(|line| parse(line).values().next().unwrap()[0]);
    insta::assert_snapshot!(largest.unwrap());
}

#[test]
fn a_flame_graph_is_drawn_without_a_warning() {
    static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));
    log::set_logger(&WARNINGS).expect("no other test logs");
    log::set_max_level(log::LevelFilter::Warn);
    for report in captures().iter().map(build) {
        for value in VALUES {
            let mut out = Vec::new();
            match export::flamegraph::write(&report, value, &mut out) {
                Err(error) if folded(&report, value).is_empty() => {
                    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
                    continue;
                }
                drawn => drawn.expect("memory does not fail"),
            }
            let svg = String::from_utf8(out).expect("an SVG is text");
            assert!(svg.contains("</svg>") && svg.contains(value.unit()));
            assert!(!svg.contains("<script>alert"), "a name is no script");
            let foreign =
                |c: char| (c.is_control() && !"\n\t".contains(c)) || "\u{fffe}\u{ffff}".contains(c);
            assert!(!svg.contains(foreign), "XML does not have that");
            // inferno reads the folded stacks, too, whoever calls it.
            let text = folded(&report, value);
            inferno::flamegraph::from_lines(&mut Options::default(), text.lines(), std::io::sink())
                .expect("folded stacks");
        }
    }
    let warnings = WARNINGS.0.lock().unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// Keeps what is warned of.
struct Warnings(Mutex<Vec<String>>);

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Of a profile, what the test looks at.
#[derive(prost::Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(prost::Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    name: i64,
}

#[derive(prost::Message)]
struct Sample {
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[test]
fn a_profile_adds_up_and_its_names_do_no_harm() {
    for capture in captures() {
        let detailed = detailed(&capture);
        for value in VALUES {
            let mut out = Vec::new();
            export::pprof::write(&detailed, &capture, value, &mut out)
                .expect("memory does not fail");
            let mut bytes = Vec::new();
            let read = GzDecoder::new(&out[..]).read_to_end(&mut bytes);
            read.expect("a profile is compressed by gzip");
            let profile = Profile::decode(&bytes[..]).expect("a profile");
            let default = profile.default_sample_type;
            let mut types = profile.sample_type.iter();
            let column = types.position(|value_type| value_type.name == default);
            let column = column.expect("the value is one of the types");
            let values = profile.sample.iter().map(|sample| sample.value[column]);
            assert_eq!(
                values.sum::<i64>(),
                total(&detailed.report, value),
                "{value}"
            );
            let mut strings = profile.string_table.iter();
            assert!(!strings.any(|text| text.contains(char::is_control)));
        }
    }
}

#[test]
fn json_has_every_name_and_nothing_that_a_terminal_obeys() {
    for report in captures().iter().map(build) {
        let mut out = Vec::new();
        export::json::write(&report, &mut out).expect("memory does not fail");
        let text = String::from_utf8(out).expect("JSON is text");
        let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(obeyed));
        let read: Json = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read, serde_json::to_value(&report).unwrap());
    }
}

fn to_json(row: &Row) -> Json {
    let cells = row.get_column_iter().map(|(name, field)| {
        let value = match field {
            Field::Null => Json::Null,
            Field::Bool(value) => (*value).into(),
            Field::Long(value) => (*value).into(),
            Field::ULong(value) => (*value).into(),
            Field::Double(value) => (*value).into(),
            Field::Str(value) => value.as_str().into(),
            other => panic!("no table has {other:?}"),
        };
        (name.clone(), value)
    });
    Json::Object(cells.collect())
}

#[test]
fn tables_add_up_and_fit_together() {
    for capture in captures() {
        let detailed = detailed(&capture);
        let report = &detailed.report;
        let metadata = export::parquet::metadata(report);
        let read = export::parquet::tables(&detailed).map(|table| {
            let mut out = Vec::new();
            table
                .write(&metadata, &mut out)
                .expect("memory does not fail");
            let reader = SerializedFileReader::new(Bytes::from(out)).expect("a Parquet file");
            assert_eq!(reader.num_row_groups(), 1, "{}", table.name);
            let rows = reader.get_row_iter(None).expect("its rows");
            let rows: Vec<Json> = rows.map(|row| to_json(&row.unwrap())).collect();
            (table.name, rows)
        });
        let rows = |name: &str| &read.iter().find(|(table, _)| *table == name).unwrap().1;
        let sum = |name: &str, column: &str| -> i64 {
            let cells = rows(name).iter().map(|row| &row[column]);
            cells.map(|cell| cell.as_i64().unwrap_or(0)).sum()
        };
        let sites = || report.sites.iter();
        assert_eq!(rows("sites").len(), report.sites.len());
        assert_eq!(
            rows("frames")
                .iter()
                .filter(|row| !row["site"].is_null())
                .count(),
            sites().map(|site| site.stack.len()).sum::<usize>()
        );
        let live: u64 = sites().map(|site| site.live_bytes).sum();
        assert_eq!(sum("sites", "live_bytes"), live as i64);
        let growth: i64 = sites().map(|site| site.growth_bytes).sum();
        assert_eq!(sum("sites", "growth_bytes"), growth);
        let end = detailed.heap.timeline.times.last().unwrap();
        let at_the_end = rows("series").iter().filter(|row| row["t_s"] == *end);
        let at_the_end = at_the_end.map(|row| row["live_bytes"].as_u64().unwrap());
        assert_eq!(at_the_end.sum::<u64>(), live);
        // What is counted object by object: the cohorts that live are what is live.
        let exact = sites().filter(|site| !site.estimate.sampled);
        let exact: BTreeMap<_, _> = exact
            .map(|site| (site.rank as u64, site.live_bytes))
            .collect();
        let mut alive: BTreeMap<u64, u64> = BTreeMap::new();
        for row in rows("objects").iter().filter(|row| row["died_s"].is_null()) {
            *alive.entry(row["site"].as_u64().unwrap()).or_default() +=
                row["bytes"].as_u64().unwrap();
        }
        for (site, live) in exact.into_iter().filter(|(_, live)| *live > 0) {
            assert_eq!(alive[&site], live, "site {site}");
        }
    }
}

#[test]
fn speedscope_has_every_value() {
    for report in captures().iter().map(build) {
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
    let report = build(&reload());
    let counted: Vec<_> = export::sites(&report).map(|(_, site)| site).collect();
    assert!(counted.iter().all(|site| site.kind == Kind::GoHeap));
    let left_out = export::left_out(&report).expect("the runtime maps its heap");
    insta::assert_snapshot!(left_out);
    assert!(export::left_out(&build(&vm())).is_none());

    let mut mappings = build(&reload());
    mappings.sites.retain(|site| site.kind == Kind::Mmap);
    assert_eq!(export::sites(&mappings).count(), mappings.sites.len());
}

#[test]
fn a_page_tells_every_site_and_holds_no_markup_of_others() {
    let own = [
        "<script id=\"data\" type=\"application/json\">",
        "</script><script>",
        "</script>",
    ];
    for capture in captures() {
        let report = build(&capture);
        let mut page = Vec::new();
        export::html::write(&report, &mut page).expect("memory takes everything");
        let page = String::from_utf8(page).expect("HTML is UTF-8");
        let (text, scripts) = page.split_once(own[0]).expect("its data");
        let (data, script) = scripts.split_once(own[1]).expect("the data end");
        let (_, rest) = script.split_once(own[2]).expect("the script ends");
        assert_eq!(rest, "</body></html>");

        assert!(text.contains("content=\"default-src 'none'; script-src 'sha256-"));
        for foreign in [
            "<script", "<b>", "<img", "<link", " src=", "url(", "\u{202e}",
        ] {
            assert!(!text.contains(foreign), "{foreign} is in the text");
        }
        for site in &report.sites {
            assert!(text.contains(&format!("id=\"site-{}\"", site.rank)));
        }
        assert!(!data.contains(['<', '\u{202e}', '\u{85}']));
        let data: Json = serde_json::from_str(data).expect("the data are JSON");
        let sites = data["sites"].as_array().expect("sites");
        let live = sites.iter().filter_map(|site| site["live_bytes"].as_u64());
        let reported = report.sites.iter().map(|site| site.live_bytes);
        assert_eq!(live.sum::<u64>(), reported.sum::<u64>());
    }
}
