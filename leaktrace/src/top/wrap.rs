//! Lines broken at words to the width of a pane.

#![forbid(unsafe_code)]

use ratatui::text::Line;

/// Breaks a line at spaces so that no piece is wider than `width` characters, if its words allow it; a
/// word that does not is broken anywhere. What follows is indented by two more than the line.
pub(super) fn wrap(line: &Line<'static>, width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width).max(8);
    let text: Vec<char> = line.iter().flat_map(|span| span.content.chars()).collect();
    let indent = text.iter().take_while(|c| **c == ' ').count() + 2;
    let indent = if indent > width / 2 { 0 } else { indent };
    let mut pieces = Vec::new();
    let mut rest = text.as_slice();
    loop {
        let indent = if pieces.is_empty() { 0 } else { indent };
        let room = width - indent;
        let end = match rest.len() <= room {
            true => rest.len(),
            false => {
                let space = rest[..=room].iter().rposition(|c| *c == ' ');
                // Not within the indentation.
                let is_inside = |at: &usize| rest[..*at].iter().any(|c| *c != ' ');
                space.filter(is_inside).unwrap_or(room)
            }
        };
        let piece: String = rest[..end].iter().collect();
        pieces.push(Line::styled(format!("{:indent$}{piece}", ""), line.style));
        let spaces = rest[end..].iter().take_while(|c| **c == ' ').count();
        rest = &rest[end + spaces..];
        if rest.is_empty() {
            return pieces;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_words() {
        let wrapped = |text: &str, width| -> Vec<String> {
            let lines = wrap(&Line::from(text.to_owned()), width);
            lines.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            wrapped("  - of 347 sampled objects", 14),
            ["  - of 347", "    sampled", "    objects"]
        );
        assert_eq!(wrapped("short", 14), ["short"]);
        assert_eq!(wrapped("", 14), [""]);
        assert_eq!(wrapped("abcdefghijkl", 8), ["abcdefgh", "  ijkl"]);
        assert_eq!(wrapped("a b", 0), ["a b"]);
    }
}
