//! The built command's text: widths, signs and frames, as the environment has them.

use std::io;
use std::process::{Command, Output};

const CAPTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/captures/reload.leaktrace"
);

/// `leaktrace report` with these arguments and nothing in its environment but these variables.
fn report(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leaktrace"));
    command
        .args(["report", CAPTURE])
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied());
    command
}

fn text(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = report(&[], &[]).stdout(writer).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
}

#[test]
fn lines_are_as_wide_as_they_are_told_to_be() {
    let of_width = |columns: &str| {
        let environment = [("COLUMNS", columns), ("LANG", "C.UTF-8")];
        text(report(&["-n", "3"], &environment).output().unwrap())
    };
    let (narrow, wide) = (of_width("60"), of_width("200"));
    let prose = |text: &str| -> Vec<usize> {
        let lines = text.lines().filter(|line| line.starts_with("   - "));
        lines.map(|line| line.chars().count()).collect()
    };
    assert!(prose(&narrow).iter().all(|&width| width <= 60), "{narrow}");
    assert!(prose(&wide).iter().any(|&width| width > 100), "{wide}");
    // Names are not cut in a pipe.
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(Into::into).collect() };
    assert_eq!(words(&narrow), words(&wide));
}

#[test]
fn a_locale_that_is_not_utf8_gets_ascii() {
    let in_locale = |locale| text(report(&[], &[("LC_ALL", locale)]).output().unwrap());
    let (plain, unicode) = (in_locale("C"), in_locale("en_GB.UTF-8"));
    assert!(plain.is_ascii(), "{plain}");
    assert!(
        unicode.contains('█') && !unicode.contains('\u{1b}'),
        "{unicode}"
    );
    assert_eq!(plain.lines().count(), unicode.lines().count());
}

#[test]
fn folded_frames_are_there_when_asked_for() {
    let (folded, all) = (
        text(report(&["-n", "1"], &[]).output().unwrap()),
        text(report(&["-n", "1", "-v"], &[]).output().unwrap()),
    );
    let frames = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("     "))
            .count()
    };
    assert!(folded.contains("main."), "{folded}");
    assert!(frames(&folded) < frames(&all), "{folded}\n{all}");
    assert!(
        all.lines().any(|line| line.starts_with("     runtime.")),
        "{all}"
    );
}
