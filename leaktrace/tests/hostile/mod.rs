//! A capture of a program that gave its functions, its files and itself names with a meaning: to folded
//! stacks, a terminal, HTML, XML, right-to-left text, JSON and SQL.

use leaktrace::capture::Capture;

const NAMES: [&str; 8] = [
    "a;b 12",
    "new\nline\r\ttab\0nul\x1b[31m\u{9b}31m",
    "</script><script>alert(1)</script>",
    "\"quoted\" & 'apos' <b>]]>",
    "\u{202e}reversed \u{ffff}\u{fffe}\u{85}",
    " ",
    "{\"json\": [1,",
    "name 1e9",
];

/// Renames everything in a capture that was closed; each name stays different from the others.
pub(crate) fn rename(capture: &mut Capture) {
    let strings = &mut capture.symbols.as_mut().expect("it was closed").strings;
    for (index, text) in strings.iter_mut().enumerate().skip(1) {
        *text = format!("{}{}", NAMES[index % NAMES.len()], index / NAMES.len());
    }
    let target = capture.header.target.as_mut().expect("it has a target");
    (target.comm, target.exe) = (NAMES[1].to_owned(), NAMES[2].to_owned());
}
