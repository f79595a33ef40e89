//! Exports, read by the tools that they are for, from one recording of a Go service that serves its own
//! heap profile.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace::capture::{Capture, CaptureWriter, Ended};
use leaktrace_tests::{Service, get, go_versions, record_what_is_served, root, run};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for every site to have some samples.
const WINDOW_S: f64 = 5.0;

/// Bytes that the service may have been seen to allocate while it answered: four samples or so, of some
/// kilobytes allocated where one in half a megabyte is sampled.
const MOST_SINCE: i64 = 2 << 20;

/// Names with a meaning, to one form or another.
#[path = "../../leaktrace/tests/hostile/mod.rs"]
mod hostile;

/// A capture of the service, its report, and the profile it served of the same collection.
struct Recorded {
    folder: TempDir,
    report: Value,
}

impl Recorded {
    fn new(version: &str) -> Self {
        let mut service = Service::start(
            &format!("reload-{version}"),
            ["-http=127.0.0.1:0", "-leak-bytes-per-s=16777216"],
        );
        let (finished, own) = record_what_is_served(&mut service, WINDOW_S, "/debug/pprof/heap");
        let report = finished.report();
        let folder = finished.folder;
        fs::rename(&finished.file, folder.path().join("capture")).unwrap();
        fs::write(folder.path().join("own.pb.gz"), own).unwrap();
        Self { folder, report }
    }

    /// The same of a program that gave its functions, its files and itself names that mean something to
    /// one form or another.
    fn renamed(&self) -> Self {
        let file = File::open(self.path("capture")).unwrap();
        let mut capture = Capture::read(BufReader::new(file)).expect("a capture of ours");
        hostile::rename(&mut capture);
        let Ended::Closed(close) = &capture.how_it_ended else {
            panic!("it was closed");
        };
        let symbols = capture.symbols.as_ref().expect("it was closed");

        let folder = TempDir::new().unwrap();
        let path = folder.path().join("capture");
        let mut writer = CaptureWriter::new(File::create(&path).unwrap()).unwrap();
        writer.header(&capture.header).unwrap();
        for interval in &capture.intervals {
            writer.interval(interval).unwrap();
        }
        writer.symbols(symbols).unwrap();
        writer.close(close).unwrap();
        let report = leaktrace_tests::report(&path);
        Self { folder, report }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Exports into a file, without a word but about what is left out.
    fn export(&self, form: &str, name: &str) -> PathBuf {
        let (capture, out) = (self.path("capture"), self.path(name));
        let output = run([
            "export".as_ref(),
            capture.as_os_str(),
            "--to".as_ref(),
            form.as_ref(),
            "-o".as_ref(),
            out.as_os_str(),
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{form}: {said}");
        assert!(output.stdout.is_empty(), "{form}");
        let foreign = |line: &&str| !line.starts_with("leaktrace: left out: ");
        assert_eq!(said.lines().find(foreign), None, "{form}");
        out
    }

    /// What the sites that add up come to.
    fn total(&self, field: &str) -> i64 {
        let sites = self.report["sites"].as_array().unwrap().iter();
        let sites = sites.filter(|site| site["mapped_by_runtime"].is_null());
        sites.map(|site| site[field].as_i64().unwrap_or(0)).sum()
    }
}

/// `go tool pprof`, from the newest Go; fails if it warns.
fn pprof(args: &[&str], files: &[&Path]) -> String {
    let output = tool(pprof_command().args(args).args(files));
    let said = String::from_utf8_lossy(&output.stderr);
    // It says where it keeps a copy of what it fetched; nothing is fetched here.
    assert_eq!(said, "", "{args:?}");
    String::from_utf8(output.stdout).expect("pprof prints text")
}

/// The program that `go tool pprof` runs, itself: so that it is what ends when we end it.
fn pprof_command() -> Command {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let go = cache("LEAKTRACE_GO", "go/1.27.3/go/bin/go");
        let output = tool(Command::new(go).args(["tool", "-n", "pprof"]));
        String::from_utf8(output.stdout)
            .expect("a path")
            .trim()
            .to_owned()
    });
    Command::new(PROGRAM.as_str())
}

fn tool(command: &mut Command) -> Output {
    let output = command.output().expect("the tool starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// What `cargo xtask setup --test` put into the cache folder, or where the variable says.
fn cache(variable: &str, below: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            PathBuf::from(std::env::var_os("HOME").expect("a home"))
                .join(".cache/leaktrace")
                .join(below)
        },
        PathBuf::from,
    )
}

/// `-top` as functions with their flat and cumulative bytes. Type arguments are `[...]` in leaktrace's
/// names, as in the runtime's own traces; the program's profile has them in full since Go 1.21.
fn top(sample: &str, file: &Path) -> BTreeMap<String, (f64, f64)> {
    let sample = format!("-sample_index={sample}");
    let options = [
        "-top",
        &sample,
        "-unit=B",
        "-nodecount=100000",
        "-nodefraction=0",
    ];
    let text = pprof(&options, &[file]);
    let rows = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("flat"));
    let mut functions: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for line in rows.skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        let bytes = |column: usize| -> f64 {
            let text: &str = columns[column];
            text.strip_suffix('B').unwrap_or(text).parse().expect(line)
        };
        let name = columns[5..].join(" ");
        let name = match (name.find('['), name.rfind(']')) {
            // Of the instances that are one to us, some may be inlined.
            (Some(open), Some(close)) => {
                let rest = name[close + 1..].split(" (").next().unwrap_or_default();
                format!("{}[...]{rest}", &name[..open])
            }
            _ => name,
        };
        let sum = functions.entry(name).or_default();
        *sum = (sum.0 + bytes(0), sum.1 + bytes(3));
    }
    functions
}

#[test]
fn pprof_shows_what_the_program_shows_itself() {
    for version in go_versions() {
        let recorded = Recorded::new(&version);
        let ours = recorded.export("pprof", "ours.pb.gz");
        let own = top("inuse_space", &recorded.path("own.pb.gz"));
        assert!(own.len() > 5, "{version}: {own:?}");
        // What has survived the collection is what the program shows. What is live may be more, by what
        // the service allocated to answer since: little of that, and mostly none of it, is sampled.
        let since = recorded.total("live_bytes") - recorded.total("proven_bytes");
        assert!((0..=MOST_SINCE).contains(&since), "{version}: {since}");
        for (sample, since) in [("proven_space", 0.0), ("inuse_space", since as f64)] {
            let seen = top(sample, &ours);
            for (function, (flat, cumulative)) in &seen {
                let (own_flat, own_cumulative) = own.get(function).copied().unwrap_or_default();
                let shown = own.contains_key(function);
                assert!(shown || since > 0.0, "{version} {sample}: {function}");
                // Each of them rounds every record to whole bytes.
                let near = |found: f64, own: f64| (-64.0..=since + 64.0).contains(&(found - own));
                assert!(
                    near(*flat, own_flat) && near(*cumulative, own_cumulative),
                    "{version} {sample}: {function}: {flat} {cumulative}, its own \
                     {own_flat} {own_cumulative}, since then {since}"
                );
            }
            let missing: Vec<_> = own
                .keys()
                .filter(|name| !seen.contains_key(*name))
                .collect();
            assert!(missing.is_empty(), "{version} {sample}: {missing:?}");
        }
        totals_agree(&recorded, &ours);
        differences(&recorded, &ours);
        let source = pprof(&["-list=rowCache.*Store"], &[&ours]);
        assert!(source.contains("func (c *rowCache) Store("), "{source}");
        let page = |page: &str| format!("/ui/{page}?f=Store");
        for (path, page) in pages(&ours, &["top", "flamegraph", "peek"].map(page)) {
            assert!(page.contains("main.(*rowCache).Store"), "{path}: {page}");
        }
        let found = others_read_theirs(&recorded);
        assert_eq!(found["largest"][0], "main.(*rowCache).Store");
        names_do_no_harm(&recorded.renamed());
    }
}

/// Every sample type adds up to the report's sites, to the byte.
fn totals_agree(recorded: &Recorded, ours: &Path) {
    for (sample, field) in [
        ("inuse_space", "live_bytes"),
        ("inuse_objects", "live_objects"),
        ("alloc_space", "alloc_bytes"),
        ("alloc_objects", "alloc_objects"),
        ("proven_space", "proven_bytes"),
        ("growth_space", "growth_bytes"),
    ] {
        let raw = pprof(&["-raw"], &[ours]);
        let mut lines = raw.lines().skip_while(|line| !line.starts_with("Samples:"));
        let types = lines.nth(1).expect("the types of samples");
        let types = types
            .split_whitespace()
            .map(|name| name.split('/').next().unwrap());
        let column = types
            .into_iter()
            .position(|name| name == sample)
            .expect(sample);
        let values = lines
            .take_while(|line| *line != "Locations")
            .filter_map(|line| {
                let (values, _) = line.split_once(':')?;
                values.split_whitespace().nth(column)?.parse::<i64>().ok()
            });
        assert_eq!(values.sum::<i64>(), recorded.total(field), "{sample}");
    }
    let comments = pprof(&["-comments"], &[ours]);
    assert!(
        comments.contains("losses: none") || comments.contains("lost: "),
        "{comments}"
    );
    let end = recorded.report["window"]["end"].as_str().unwrap();
    assert!(comments.contains(&format!("end: {end} (")), "{comments}");
}

/// A profile less itself is nothing; the program's own can be subtracted.
fn differences(recorded: &Recorded, ours: &Path) {
    let base = format!("-base={}", ours.display());
    let text = pprof(&["-top", &base], &[ours]);
    assert!(text.contains("of 0 total"), "{text}");
    let base = format!("-base={}", recorded.path("own.pb.gz").display());
    pprof(&["-top", &base], &[ours]);
}

/// What pprof serves on loopback, by path.
fn pages(ours: &Path, paths: &[String]) -> Vec<(String, String)> {
    let mut server = pprof_command()
        .args(["-http=127.0.0.1:", "-no_browser"])
        .arg(ours)
        .stderr(Stdio::piped())
        .spawn()
        .expect("pprof starts");
    let mut said = BufReader::new(server.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("Serving web UI on http://")
        .expect(&line);
    // It says so just before it does.
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() && Instant::now() < end {
        sleep(Duration::from_millis(50));
    }
    let fetched = paths.iter().map(|path| {
        let page = get(address, path);
        (path.clone(), String::from_utf8_lossy(&page).into_owned())
    });
    let fetched = fetched.collect();
    server.kill().unwrap();
    server.wait().unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    fetched
}

/// Whatever a program calls its functions, every tool reads every form, and none is led astray.
fn names_do_no_harm(renamed: &Recorded) {
    let ours = renamed.export("pprof", "hostile.pb.gz");
    totals_agree(renamed, &ours);
    let text = pprof(&["-top", "-nodecount=1000"], &[&ours]);
    assert!(is_harmless(&text), "{text:?}");
    let rows = text.lines().skip_while(|line| !line.contains("flat%"));
    let is_row = |line: &str| {
        line.split_whitespace()
            .nth(4)
            .unwrap_or_default()
            .ends_with('%')
    };
    assert!(rows.clone().count() > 5, "{text}");
    assert!(rows.skip(1).all(is_row), "{text}");
    for (path, page) in pages(&ours, &["/ui/top".to_owned(), "/ui/flamegraph".to_owned()]) {
        assert!(page.contains("new"), "{path}: {page}");
        assert!(!page.contains("<script>alert"), "{path}: {page}");
    }

    others_read_theirs(renamed);
    for form in ["folded", "flamegraph", "speedscope"] {
        let text = fs::read_to_string(renamed.export(form, &format!("hostile.{form}")));
        let text = text.expect("it is text");
        assert!(is_harmless(&text), "{form}: {text:?}");
        assert!(form != "flamegraph" || !text.contains("<script>alert"));
    }
    let folded = fs::read_to_string(renamed.path("hostile.folded")).unwrap();
    let figures = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    let sum = figures.map(|figure| figure.parse::<i64>().unwrap());
    assert_eq!(sum.sum::<i64>(), renamed.total("live_bytes"));
}

/// Without a character that a terminal obeys.
fn is_harmless(text: &str) -> bool {
    let obeyed = |c: char| (c.is_control() && !"\n\t".contains(c)) || c == '\u{202e}';
    !text.contains(obeyed)
}

/// speedscope's own schema, DuckDB and pyarrow; what both of these found.
fn others_read_theirs(recorded: &Recorded) -> Value {
    let report = fs::read(recorded.export("json", "report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report, recorded.report);

    let file = recorded.export("speedscope", "profile.speedscope.json");
    let schema = root().join("tests/speedscope/file-format-schema.json");
    python("speedscope", &[&schema, &file]);

    let folder = recorded.export("parquet", "tables");
    let found = python("parquet", &[&folder]);
    let found: Value = serde_json::from_slice(&found.stdout).expect("the script prints JSON");
    let sites = recorded.report["sites"].as_array().unwrap();
    let total = |field: &str| -> i64 {
        sites
            .iter()
            .map(|site| site[field].as_i64().unwrap_or(0))
            .sum()
    };
    for field in [
        "live_bytes",
        "live_objects",
        "alloc_bytes",
        "growth_bytes",
        "proven_bytes",
    ] {
        assert_eq!(found[field], total(field), "{field}");
    }
    for table in ["sites", "frames", "series", "objects", "goroutines"] {
        assert_eq!(found[table]["row_groups"], 1, "{table}");
        assert_ne!(found[table]["rows"], 0, "{table}");
        assert_eq!(found[table]["pid"], recorded.report["target"]["pid"]);
    }
    assert_eq!(found["sites"]["rows"], sites.len());
    assert_eq!(found["at_the_end"], total("live_bytes"));
    found
}

fn python(form: &str, files: &[&Path]) -> Output {
    let script = root().join("tests/tests/export.py");
    let mut command = Command::new("python3");
    command.arg("-I").arg("-c").arg(
        // -I keeps the user's own packages out; only those of the cache folder are to be found.
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv = sys.argv[1:]; \
         runpy.run_path(sys.argv[0], run_name='__main__')",
    );
    command
        .arg(cache("LEAKTRACE_PYTHON", "python"))
        .arg(script)
        .arg(form)
        .args(files);
    let output = tool(&mut command);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{form}");
    output
}
