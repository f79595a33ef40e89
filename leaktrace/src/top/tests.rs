//! The screen and its keys, on a recorded capture.

use std::{io::BufReader, path::PathBuf, sync::Arc};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend};

use super::{
    analyst::Snapshot,
    cost::{Cost, ProbeCost},
    rows::List,
    state::{Action, Pane, Prompt, State},
    view::{Theme, draw},
};
use crate::{
    capture::Capture,
    report::{
        self, Frame, Report, ReportOptions,
        goroutines::{ChannelReport, GoroutineGroup, Goroutines},
    },
    verdict::Verdict,
};

fn report() -> Report {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/captures/reload.leaktrace"
    );
    let file = std::fs::File::open(path).unwrap();
    let capture = Capture::read(BufReader::new(file)).unwrap();
    report::build(
        &capture,
        capture.symbols.as_ref(),
        &ReportOptions::default(),
    )
}

fn snapshot(report: Report) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        report,
        cost: Cost {
            cpu: 0.0123,
            rss: 42 << 20,
            probes: Some(ProbeCost {
                hits_per_s: 1234.5,
                cpu: 0.0006,
            }),
        },
        events: 4321,
        file_name: "leaktrace-reload-1-20260101T000000Z.leaktrace".to_owned(),
    })
}

fn state() -> State {
    let mut state = State::default();
    state.update(snapshot(report()));
    state
}

fn press(state: &mut State, code: KeyCode) -> Option<Action> {
    state.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_in(state: &mut State, text: &str) {
    for c in text.chars() {
        assert_eq!(press(state, KeyCode::Char(c)), None);
    }
}

fn control(state: &mut State, c: char) -> Option<Action> {
    state.key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL))
}

/// The screen, and the scrolling that was possible.
fn screen(state: &State, (width, height): (u16, u16)) -> (String, u16) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let mut scroll = 0;
    let theme = Theme { colour: true };
    terminal
        .draw(|frame| scroll = draw(frame, state, theme))
        .unwrap();
    (terminal.backend().to_string(), scroll)
}

const SIZE: (u16, u16) = (110, 24);

#[test]
fn sites_are_listed() {
    insta::assert_snapshot!(screen(&state(), SIZE).0);
}

#[test]
fn a_site_is_expanded() {
    let mut state = state();
    press(&mut state, KeyCode::Enter);
    insta::assert_snapshot!(screen(&state, (110, 40)).0);
    // It is scrolled as far as there is something to see.
    for _ in 0..50 {
        press(&mut state, KeyCode::PageDown);
    }
    let (text, scroll) = screen(&state, SIZE);
    assert!(scroll > 0 && scroll < 50, "{scroll}\n{text}");
}

#[test]
fn the_lack_of_goroutines_is_told() {
    let mut state = state();
    press(&mut state, KeyCode::Tab);
    insta::assert_snapshot!(screen(&state, SIZE).0);
}

#[test]
fn a_group_of_goroutines_is_expanded() {
    let mut report = report();
    let frame = |function: &str, line| Frame {
        function: Some(function.to_owned()),
        file: Some("/srv/app/serve.go".to_owned()),
        line: Some(line),
        ..Frame::default()
    };
    report.goroutines = Some(Goroutines {
        total: 640,
        groups: vec![GoroutineGroup {
            count: 640,
            state: "waiting".to_owned(),
            wait_reason: Some("chan receive".to_owned()),
            growth_per_s: Some(4.2),
            verdict: Some(Verdict::Leak),
            evidence: vec!["640 settled, 0 of those have left".to_owned()],
            blocked_at: Some(frame("main.(*pool).wait", 72)),
            created_by: Some(frame("main.serve", 31)),
            stack: vec![frame("runtime.gopark", 474), frame("main.(*pool).wait", 72)],
            stack_bytes: 1 << 20,
            channel: Some(ChannelReport {
                receivers: 640,
                ..ChannelReport::default()
            }),
            oldest_wait_s: Some(27.0),
            median_wait_s: Some(22.0),
            ..GoroutineGroup::default()
        }],
        ..Goroutines::default()
    });
    let mut state = State::default();
    state.update(snapshot(report));
    press(&mut state, KeyCode::Tab);
    press(&mut state, KeyCode::Enter);
    insta::assert_snapshot!(screen(&state, SIZE).0);
}

#[test]
fn what_is_not_seen_is_listed() {
    let mut state = state();
    press(&mut state, KeyCode::BackTab);
    assert_eq!(state.pane, Pane::Losses);
    insta::assert_snapshot!(screen(&state, SIZE).0);
}

#[test]
fn every_size_and_state_can_be_drawn() {
    let expanded = {
        let mut state = state();
        press(&mut state, KeyCode::Enter);
        state
    };
    let losses = {
        let mut state = state();
        press(&mut state, KeyCode::BackTab);
        state
    };
    let prompt = {
        let mut state = state();
        press(&mut state, KeyCode::Char('s'));
        state
    };
    for state in [State::default(), state(), expanded, losses, prompt] {
        for size in (1..30).flat_map(|height| [1, 2, 7, 23, 80].map(|width| (width, height))) {
            screen(&state, size);
        }
    }
}

#[test]
fn names_of_the_target_cannot_command_the_terminal() {
    let mut report = report();
    let hostile = "evil\u{1b}[2J\n\u{202e}name";
    report.target.comm = hostile.to_owned();
    for frame in &mut report.sites[0].stack {
        frame.function = Some(hostile.to_owned());
        frame.file = Some(hostile.to_owned());
    }
    let mut state = State::default();
    state.update(snapshot(report));
    press(&mut state, KeyCode::Enter);
    let (text, _) = screen(&state, (160, 40));
    assert!(text.contains("evil\\u{1b}[2J\\n\\u{202e}name"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
}

#[test]
fn keys_that_end_it() {
    assert_eq!(press(&mut state(), KeyCode::Char('q')), Some(Action::Quit));
    assert_eq!(control(&mut state(), 'c'), Some(Action::Quit));
    let mut state = state();
    press(&mut state, KeyCode::Char('/'));
    type_in(&mut state, "q");
    assert_eq!(state.filter, "q");
    assert_eq!(control(&mut state, 'c'), Some(Action::Quit));
}

#[test]
fn a_filter_is_typed_kept_and_given_up() {
    let mut state = state();
    let all = state.sites.rows.len();
    type_in(&mut state, "/ROWCACHE");
    let found = state.sites.rows.len();
    assert!(found >= 1 && found < all, "{found} of {all}");
    press(&mut state, KeyCode::Enter);
    assert_eq!(
        (state.prompt.clone(), state.sites.rows.len()),
        (None, found)
    );
    type_in(&mut state, "/x");
    press(&mut state, KeyCode::Backspace);
    press(&mut state, KeyCode::Backspace);
    assert_eq!(state.filter, "ROWCACH");
    press(&mut state, KeyCode::Esc);
    assert_eq!(state.filter, "ROWCACHE");
    press(&mut state, KeyCode::Esc);
    assert_eq!(state.sites.rows.len(), all);
}

#[test]
fn a_file_is_named_and_saved() {
    let mut state = state();
    press(&mut state, KeyCode::Char('s'));
    let file = "leaktrace-reload-1-20260101T000000Z.leaktrace".to_owned();
    assert_eq!(state.prompt, Some(Prompt::Save { file: file.clone() }));
    let saved = press(&mut state, KeyCode::Enter);
    assert_eq!(saved, Some(Action::Save(PathBuf::from(file))));
    press(&mut state, KeyCode::Char('s'));
    control(&mut state, 'u');
    assert_eq!(press(&mut state, KeyCode::Enter), None);
    press(&mut state, KeyCode::Char('s'));
    control(&mut state, 'u');
    type_in(&mut state, "ä");
    let saved = press(&mut state, KeyCode::Enter);
    assert_eq!(saved, Some(Action::Save(PathBuf::from("ä"))));
    press(&mut state, KeyCode::Char('s'));
    assert_eq!(press(&mut state, KeyCode::Esc), None);
    assert_eq!(state.prompt, None);
}

#[test]
fn rows_are_ordered_by_each_column() {
    let mut state = state();
    let snapshot = state.shown.clone().unwrap();
    let sites = &snapshot.report.sites;
    assert_eq!(state.sites.rows, (0..sites.len()).collect::<Vec<_>>());
    let falls = |values: Vec<f64>| values.is_sorted_by(|a, b| a >= b);
    let values = |state: &State, of: fn(&report::SiteReport) -> f64| -> Vec<f64> {
        state
            .sites
            .rows
            .iter()
            .map(|row| of(&sites[*row]))
            .collect()
    };
    press(&mut state, KeyCode::Char('o'));
    assert!(falls(values(&state, |site| site.live_bytes as f64)));
    press(&mut state, KeyCode::Char('o'));
    assert!(falls(values(&state, |site| site.growth_bytes_per_s)));
    press(&mut state, KeyCode::Char('o'));
    assert!(falls(values(&state, |site| site.oldest_s)));
    press(&mut state, KeyCode::Char('o'));
    assert_eq!(state.sites.rows, (0..sites.len()).collect::<Vec<_>>());
}

#[test]
fn a_chosen_row_stays_chosen_when_it_moves() {
    let mut state = state();
    press(&mut state, KeyCode::Down);
    let chosen = state.selected(List::Sites).unwrap();
    assert_eq!(chosen, 1);
    let mut report = report();
    report.sites.swap(1, 3);
    state.update(snapshot(report));
    assert_eq!(state.selected(List::Sites), Some(3));
    press(&mut state, KeyCode::Home);
    assert_eq!(state.selected(List::Sites), Some(0));
    press(&mut state, KeyCode::End);
    assert_eq!(state.sites.cursor + 1, state.sites.rows.len());
    // One that is gone leaves its place.
    let mut report = self::report();
    report.sites.pop();
    state.update(snapshot(report));
    assert_eq!(state.sites.cursor + 1, state.sites.rows.len());
}

#[test]
fn a_pause_holds_what_is_shown() {
    let mut state = state();
    press(&mut state, KeyCode::Char('p'));
    let mut report = report();
    report.target.comm = "later".to_owned();
    state.update(snapshot(report));
    let comm = |state: &State| state.shown.as_ref().unwrap().report.target.comm.clone();
    assert_ne!(comm(&state), "later");
    press(&mut state, KeyCode::Char('p'));
    assert_eq!(comm(&state), "later");
}
