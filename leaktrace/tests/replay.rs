//! Captures recorded from real processes, read again without privileges: the reports must stay as
//! they are, whatever becomes of the stages behind the file.
//!
//! `reload.leaktrace`: the sample service `reload`, Go 1.27.3, stripped, 20 s.
//! `vm.leaktrace`: the C program `vm`, every case of mmap and brk, 4 s.

use leaktrace::{
    capture::{Capture, Ended},
    report::{self, Report, ReportOptions, text::TextOptions},
    verdict::Verdict,
};

fn capture(bytes: &[u8]) -> Capture {
    let capture = Capture::read(bytes).expect("a capture of ours");
    assert!(matches!(capture.how_it_ended, Ended::Closed(_)));
    capture
}

fn build(capture: &Capture) -> Report {
    report::build(capture, capture.symbols.as_ref(), &ReportOptions::default())
}

fn text(report: &Report, top: usize) -> String {
    let mut text = Vec::new();
    let options = TextOptions {
        top,
        ..TextOptions::default()
    };
    report::text::write(report, options, &mut text).expect("memory does not fail");
    String::from_utf8(text).expect("the report is text")
}

#[test]
fn reload_service() {
    let capture = capture(include_bytes!("captures/reload.leaktrace"));
    let report = build(&capture);
    let first = &report.sites[0];
    assert_eq!(first.verdict, Verdict::Leak);
    assert_eq!(
        first.stack[0].function.as_deref(),
        Some("main.(*rowCache).Store")
    );
    insta::assert_snapshot!(text(&report, 4));
}

#[test]
fn address_space() {
    let capture = capture(include_bytes!("captures/vm.leaktrace"));
    let report = build(&capture);
    assert!(report.losses.is_empty(), "{:?}", report.losses);
    // The program's own truth, as it printed it.
    let live: u64 = report.sites.iter().map(|site| site.live_bytes).sum();
    assert_eq!(live, 733_184);
    insta::assert_snapshot!(text(&report, 100));
}
