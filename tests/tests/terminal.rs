//! `top` and `record` in a real terminal: what is on the screen, what keys do, and that the terminal is
//! as it was however they end. The screens stay in `target/screenshots`.

use leaktrace_tests::{Service, Terminal, assert_nothing_left, report, run};
use nix::sys::signal::Signal;

const SIZE: (u16, u16) = (32, 120);

fn service() -> Service {
    let mut service = Service::start(
        "reload-1.27.3",
        ["-leak-bytes-per-s=4194304", "-leak-limit-bytes=1073741824"],
    );
    service.wait_for("leaked_bytes", 1.0);
    service
}

fn top(service: &Service) -> Terminal {
    let pid = service.pid().to_string();
    Terminal::start(SIZE, ["top", "-p", &pid, "--interval", "500ms"])
}

/// Whether it is the line of the leaking function, and that is judged.
fn is_leak(line: &str) -> bool {
    line.contains(" leak ") && line.contains("main.(*rowCache).Store")
}

fn wait_for_leak(terminal: &Terminal) -> String {
    let text = terminal.wait_for("leak", |text| text.lines().any(is_leak));
    text.lines().find(|line| is_leak(line)).unwrap().to_owned()
}

#[test]
fn a_leak_is_watched() {
    let service = service();
    let mut terminal = top(&service);
    let line = wait_for_leak(&terminal);
    assert!(
        line.contains("go_heap") && line.contains("reload.go:"),
        "{line}"
    );
    let text = terminal.wait_for("cost of the probes", |text| {
        text.contains(" events") && text.contains("probes hit")
    });
    for what in [
        &format!("(pid {}), go1.27.3, watched for", service.pid()) as &str,
        "memory: resident",
        "since the attach",
        "verdicts: ",
        "losses: ",
        "leaktrace: ",
        "q quit",
    ] {
        assert!(text.contains(what), "no `{what}`:\n{text}");
    }
    terminal.shoot("top-sites");

    // The stack and the evidence.
    terminal.press("\r");
    terminal.wait_for("stack", |text| {
        text.contains("main.main") && text.contains("- grew by")
    });
    terminal.shoot("top-stack");
    terminal.press("\u{1b}");
    terminal.wait_for("list without stack", |text| !text.contains("main.main"));

    // By another column, and back.
    terminal.press("o");
    terminal.wait_for("order by live bytes", |text| text.contains("▼live"));
    terminal.press("ooo");
    terminal.wait_for("order by rank", |text| !text.contains('▼'));

    // A filter that nothing passes, another that one line does.
    terminal.press("/no such function");
    terminal.wait_for("prompt", |text| text.contains("filter: no such function_"));
    terminal.press("\r");
    terminal.wait_for("empty list", |text| {
        text.contains("nothing contains `no such function`")
    });
    terminal.press("/\u{15}ROWCACHE\r");
    terminal.wait_for("filtered list", |text| {
        text.contains("  filter: ROWCACHE") && text.contains("main.(*rowCache).Store")
    });
    terminal.shoot("top-filter");
    terminal.press("\u{1b}");
    terminal.wait_for("whole list", |text| !text.contains("filter:"));

    // Goroutines, and what is not seen.
    terminal.press("\t");
    terminal.wait_for("goroutines", |text| {
        text.contains("what they do, where") && text.contains(", made by ")
    });
    terminal.shoot("top-goroutines");
    terminal.press("\r");
    terminal.wait_for("stack of a goroutine", |text| {
        text.contains("goroutine, ") || text.contains("goroutines, ")
    });
    terminal.press("\r\t");
    terminal.wait_for("what is not seen", |text| {
        let is_told = text.contains("not seen: ") || text.contains(" free_of_unseen: ");
        !text.contains("what they do, where") && is_told
    });
    terminal.shoot("top-not-seen");
    terminal.press("\t");
    // crossterm keeps a key that comes together with SIGWINCH until the next one.
    terminal.wait_for("the sites again", |text| {
        !text.contains(" free_of_unseen: ")
    });

    // Any size will do, as SIGWINCH tells it.
    for (rows, columns) in [(8, 40), (3, 20), (60, 200)] {
        terminal.resize(rows, columns);
        terminal.wait_for("picture of the new size", |text| {
            let lines: Vec<_> = text.lines().collect();
            lines.len() == usize::from(rows)
                && lines[0].starts_with("reload-1.27.3 (pid ")
                && lines[lines.len() - 1].starts_with("q quit")
        });
    }
    wait_for_leak(&terminal);
    terminal.shoot("top-large");
    terminal.resize(SIZE.0, SIZE.1);
    wait_for_leak(&terminal);

    // Paused, the time stands still.
    terminal.press("p");
    terminal.wait_for("pause", |text| text.contains("PAUSED"));
    terminal.press("p");
    terminal.wait_for("end of the pause", |text| !text.contains("PAUSED"));

    // A capture, under the name that is proposed and under another; once the verdict stands so firm that some
    // seconds more do not change it.
    terminal.wait_for("verdict after half a minute", |text| {
        let watched = text.split_once("watched for ");
        let seconds = watched.and_then(|(_, rest)| rest.split_once(" s")?.0.parse().ok());
        seconds.is_none_or(|seconds: f64| seconds >= 30.0) && text.lines().any(is_leak)
    });
    terminal.press("s");
    terminal.wait_for("proposed name", |text| {
        text.contains("save as: leaktrace-reload")
    });
    terminal.press("\u{15}watched.leaktrace\r");
    terminal.wait_for("saved capture", |text| text.contains("saved; read on with"));
    terminal.shoot("top-saved");
    let file = terminal.folder().join("watched.leaktrace");
    let report = report(&file);
    assert_eq!(report["window"]["end"], "live");
    assert_eq!(
        report["sites"][0]["verdict"], "leak",
        "{:#}",
        report["sites"][0]
    );
    assert!(
        report["sites"][0]["stack"]
            .to_string()
            .contains("main.(*rowCache).Store")
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    // Nothing is written over.
    terminal.press("s\u{15}watched.leaktrace\r");
    terminal.wait_for("refusal", |text| text.contains("exists already"));

    terminal.press("q");
    assert_eq!(terminal.ended().code(), Some(0));
    assert_nothing_left();
}

#[test]
fn every_way_out_leaves_the_terminal_as_it_was() {
    let mut service = service();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
    ] {
        let mut terminal = top(&service);
        terminal.wait_for("first picture", |text| text.contains("verdicts: "));
        terminal.signal(signal);
        assert_eq!(terminal.ended().code(), Some(0), "{signal}");
        assert_nothing_left();
    }
    let mut terminal = top(&service);
    terminal.wait_for("first picture", |text| text.contains("verdicts: "));
    // Ctrl-C, as a key.
    terminal.press("\u{3}");
    assert_eq!(terminal.ended().code(), Some(0));
    assert!(service.is_running());

    // A window that is closed.
    let terminal = top(&service);
    terminal.wait_for("first picture", |text| text.contains("verdicts: "));
    // SIGHUP and a write that fails come at the same time: either ends it in order.
    let code = terminal.close().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    assert_nothing_left();

    // The end of the process: what was seen last stays on the screen.
    let mut terminal = top(&service);
    wait_for_leak(&terminal);
    service.end();
    assert_eq!(terminal.ended().code(), Some(0));
    let text = terminal.wait_for("end", |text| {
        text.contains("top has ended: the target exited")
    });
    assert!(text.contains("losses"), "{text}");
    terminal.shoot("top-target-exit");
    assert_nothing_left();
}

#[test]
fn there_is_no_top_without_a_terminal() {
    let output = run(["top", "-p", "1"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("top needs a terminal: use `leaktrace record -p 1`"),
        "{text}"
    );
}

#[test]
fn errors_are_told_on_the_terminal_as_it_is() {
    let mut terminal = Terminal::start(SIZE, ["top", "-p", "2"]);
    assert_eq!(terminal.ended().code(), Some(6));
    terminal.wait_for("reason", |text| {
        text.contains("leaktrace: ") && text.contains("kernel")
    });
}

#[test]
fn a_recording_tells_where_it_stands() {
    let service = service();
    let pid = service.pid().to_string();
    let mut terminal = Terminal::start(SIZE, ["record", "-p", &pid, "-d", "600s"]);
    let is_live = |text: &str| {
        let line = text.lines().last().unwrap_or_default().to_owned();
        line.contains(" left · ") && line.contains(" · resident ") && line.contains("(+")
    };
    let text = terminal.wait_for("line that tells where it stands", is_live);
    assert!(text.contains("attached to"), "{text}");
    terminal.shoot("record");
    // A narrow terminal cuts it: it stays one line, which can be taken away. One that was on its way when the width
    // changed is wrapped, and stays: not each time.
    let fits = |columns: u16| {
        terminal.resize(SIZE.0, columns);
        terminal.comes_to_show(|text| {
            let mut lines = text.lines().filter(|line| line.contains(" left · "));
            let first = lines.next().map(|line| line.chars().count());
            first.is_some_and(|count| count <= usize::from(columns)) && lines.next().is_none()
        })
    };
    assert!([50, 49, 48].into_iter().any(fits));
    terminal.resize(SIZE.0, SIZE.1);
    // Ctrl-C.
    terminal.press("\u{3}");
    let text = terminal.wait_for("end", |text| text.contains("read on with"));
    assert!(
        !text.contains(" left · "),
        "the line is still there:\n{text}"
    );
    assert_eq!(terminal.ended().code(), Some(0));
    terminal.shoot("record-end");
    assert_nothing_left();
}

#[test]
fn a_quiet_recording_says_nothing() {
    let service = service();
    let pid = service.pid().to_string();
    let mut terminal = Terminal::start(SIZE, ["record", "-q", "-p", &pid, "-d", "2s"]);
    assert_eq!(terminal.ended().code(), Some(0));
    assert_eq!(terminal.wait_for("nothing", |_| true), "");
    assert_nothing_left();
}

/// A connection breaks: the recording ends as at a signal, and nothing of it is lost.
#[test]
fn a_recording_outlives_its_window() {
    let service = service();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("capture.leaktrace");
    let (pid, out) = (service.pid().to_string(), file.to_str().unwrap());
    let terminal = Terminal::start(SIZE, ["record", "-p", &pid, "-d", "600s", "-o", out]);
    terminal.wait_for("line that tells where it stands", |text| {
        text.contains(" left · ")
    });
    // The three worst sites have nowhere to go.
    let code = terminal.close().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    let report = report(&file);
    assert_eq!(report["window"]["end"], "signal", "{}", report["window"]);
    assert_nothing_left();
}
