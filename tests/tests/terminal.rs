//! `record` in a real terminal: what is on the screen, and that the terminal is as it was in the end. The
//! screens stay in `target/screenshots`.

use leaktrace_tests::{Service, Terminal, assert_nothing_left};

const SIZE: (u16, u16) = (32, 120);

fn service() -> Service {
    let mut service = Service::start(
        "reload-1.27.3",
        ["-leak-bytes-per-s=4194304", "-leak-limit-bytes=1073741824"],
    );
    service.wait_for("leaked_bytes", 1.0);
    service
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
    // A narrow terminal cuts it: it stays one line, which can be taken away.
    terminal.resize(SIZE.0, 50);
    terminal.wait_for("line that fits", |text| {
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains(" left · "))
            .collect();
        lines.len() == 1 && lines[0].chars().count() <= 50
    });
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
