//! What stdout is: how wide, with which signs, and whether in colour.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use leaktrace::report::text::TextOptions;
use terminal_size::terminal_size_of;

/// Columns where there is no terminal, or it does not tell.
const COLUMNS: usize = 100;
/// Columns below which lines are not wrapped any further.
const FEWEST_COLUMNS: usize = 40;

/// How to write a report of `top` sites to stdout.
pub(crate) fn text_options(top: usize, all_frames: bool) -> TextOptions {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    TextOptions {
        top,
        colour: is_coloured(),
        width: columns(
            set("COLUMNS").as_deref(),
            terminal_size_of(&stdout).map(|(width, _)| width.0),
        ),
        shorten: is_terminal,
        unicode: is_utf8(["LC_ALL", "LC_CTYPE", "LANG"].map(set)),
        all_frames,
    }
}

/// Whether stdout is a terminal, and the user wants colours, <https://no-color.org>.
pub(crate) fn is_coloured() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What `COLUMNS` says, else the terminal, if there is one.
fn columns(variable: Option<&str>, terminal: Option<u16>) -> usize {
    let variable = variable.and_then(|columns| columns.trim().parse::<usize>().ok());
    let columns = variable.or(terminal.map(usize::from));
    let columns = columns.filter(|columns| *columns > 0);
    columns.map_or(COLUMNS, |columns| columns.max(FEWEST_COLUMNS))
}

/// Whether the locale's characters are UTF-8. Of its variables the first that is set counts (locale(7)).
fn is_utf8(variables: [Option<String>; 3]) -> bool {
    let locale = variables.into_iter().flatten().next().unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_is_what_is_said_then_what_is_there() {
        assert_eq!(columns(Some("132"), Some(80)), 132);
        assert_eq!(columns(Some("x"), Some(80)), 80);
        assert_eq!(columns(None, None), 100);
        assert_eq!(
            (columns(Some("0"), None), columns(Some("7"), None)),
            (100, 40)
        );
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_locale() {
        let is_utf8 = |variables: [&str; 3]| {
            let set = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
            is_utf8(variables.map(set))
        };
        assert!(is_utf8(["", "", "en_GB.UTF-8"]) && is_utf8(["C.utf8", "C", "C"]));
        assert!(!is_utf8(["", "", ""]) && !is_utf8(["C", "", "en_GB.UTF-8"]));
    }
}
