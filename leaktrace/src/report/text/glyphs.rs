//! What a terminal shows: lines in a character, names cut to a width, and their plain forms.

/// A series as a line of `columns` characters, each the highest value of its stretch, from zero to the
/// highest of all. Empty for a series of fewer than two points, and for one of zeros.
pub(super) fn sparkline(series: &[(f64, u64)], columns: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let top = series.iter().map(|point| point.1).max().unwrap_or(0);
    let columns = columns.min(series.len());
    if series.len() < 2 || top == 0 {
        return String::new();
    }
    let level = |value: u64| (value as f64 / top as f64 * 7.0).round() as usize;
    let stretch = |column: usize| {
        &series[column * series.len() / columns..(column + 1) * series.len() / columns]
    };
    let highest = |points: &[(f64, u64)]| points.iter().map(|point| point.1).max().unwrap_or(0);
    (0..columns)
        .map(|column| LEVELS[level(highest(stretch(column))).min(7)])
        .collect()
}

/// A name of at most `columns` characters: its end tells more than its beginning, so that a third of what
/// is left stands before the gap and the rest behind it.
pub(super) fn shorten(name: &str, columns: usize) -> String {
    let length = name.chars().count();
    if length <= columns {
        return name.to_owned();
    }
    let left = columns.saturating_sub(1);
    let (head, tail) = (left / 3, left - left / 3);
    let beginning = name.chars().take(head);
    let end = name.chars().skip(length - tail);
    beginning.chain(['…']).chain(end).collect()
}

/// The report's own characters that are not ASCII, written in ASCII. Names of the target stay as they are.
pub(super) fn in_ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '▁' => plain.push('_'),
            '▂' => plain.push('.'),
            '▃' => plain.push(':'),
            '▄' => plain.push('-'),
            '▅' => plain.push('='),
            '▆' => plain.push('+'),
            '▇' => plain.push('*'),
            '█' => plain.push('#'),
            '·' => plain.push('|'),
            '…' => plain.push_str("..."),
            '→' => plain.push_str("->"),
            '←' => plain.push_str("<-"),
            '×' => plain.push('x'),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_drawn_from_zero() {
        let series = |values: &[u64]| -> Vec<_> {
            let times = (0..).map(f64::from);
            times.zip(values.iter().copied()).collect()
        };
        assert_eq!(
            sparkline(&series(&[0, 1, 2, 3, 4, 5, 6, 7]), 24),
            "▁▂▃▄▅▆▇█"
        );
        assert_eq!(sparkline(&series(&[0, 7, 0, 0, 1, 1, 0, 0]), 4), "█▁▂▁");
        assert_eq!(sparkline(&series(&[5, 5, 5]), 24), "███");
        assert_eq!(sparkline(&series(&[u64::MAX, 0]), 24), "█▁");
        assert_eq!(sparkline(&series(&[0, 0, 0]), 24), "");
        assert_eq!(sparkline(&series(&[9]), 24), "");
        assert_eq!(in_ascii("▁▂▃▄▅▆▇█ a · b…"), "_.:-=+*# a | b...");
    }

    #[test]
    fn names_are_shortened_in_the_middle() {
        let name = "example.com/large/package.(*Service).handle";
        assert_eq!(shorten(name, 100), name);
        assert_eq!(shorten(name, 22), "example…ervice).handle");
        assert_eq!(shorten("ŝŝŝŝŝŝ", 4), "ŝ…ŝŝ");
        assert_eq!(
            (shorten("abc", 1), shorten("abc", 0)),
            ("…".into(), "…".into())
        );
    }
}
