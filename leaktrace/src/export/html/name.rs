//! Names that come from the target, made harmless for a page.

use std::fmt;

use maud::{Render, html};

use crate::export::escape;
use crate::report::Frame;

/// Characters of a name that are shown; the data in the page has all of them.
const SHOWN: usize = 240;

/// Text from the target: control characters and those that turn the direction of text are written
/// as escapes, what is too long for a page is cut and says so. `maud` does the rest.
pub(super) struct Name<'a>(pub(super) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(SHOWN) {
            None => f.write_str(&escape(self.0)),
            Some((cut, _)) => {
                let length = self.0.chars().count();
                write!(f, "{}… ({length} characters)", escape(&self.0[..cut]))
            }
        }
    }
}

impl Render for Name<'_> {
    fn render_to(&self, buffer: &mut String) {
        maud::display(self).render_to(buffer);
    }
}

/// A frame in one line: its function, or its address, and the place.
pub(super) struct Line<'a>(pub(super) &'a Frame);

impl Line<'_> {
    /// The function, or the address where there is no name.
    pub(super) fn function(&self) -> String {
        match &self.0.function {
            Some(function) => Name(function).to_string(),
            None => format!("{:#x}", self.0.address),
        }
    }

    /// `reload.go:42`, the module and offset where no line is known, or nothing.
    pub(super) fn place(&self) -> String {
        match (&self.0.file, self.0.line) {
            (Some(file), Some(line)) => format!("{}:{line}", Name(base(file))),
            (Some(file), None) => Name(base(file)).to_string(),
            (None, _) => match (&self.0.module, self.0.offset) {
                (Some(module), Some(offset)) => format!("{}+{offset:#x}", Name(base(module))),
                _ => String::new(),
            },
        }
    }
}

impl Render for Line<'_> {
    fn render_to(&self, buffer: &mut String) {
        let place = self.place();
        let line = html! {
            span.function { (self.function()) }
            @if !place.is_empty() { " " span.place { (place) } }
        };
        line.render_to(buffer);
    }
}

/// The last part of a path.
fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_harmless_text() {
        let page = |name: &str| Name(name).render().into_string();
        assert_eq!(
            page("</script><img src=x onerror=\"alert(1)\">&"),
            "&lt;/script&gt;&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;"
        );
        assert_eq!(page("a\u{202e}b\u{1b}[31m\n"), "a\\u{202e}b\\u{1b}[31m\\n");
        let long = page(&"é".repeat(1 << 20));
        assert!(long.ends_with("é… (1048576 characters)"));
        assert!(long.chars().count() < SHOWN + 30);
    }

    #[test]
    fn a_frame_is_named_by_what_is_known() {
        let mut frame = Frame {
            address: 0x40_1234,
            module: Some("/usr/bin/app".into()),
            offset: Some(0x1234),
            ..Frame::default()
        };
        let line = |frame: &Frame| (Line(frame).function(), Line(frame).place());
        assert_eq!(line(&frame), ("0x401234".into(), "app+0x1234".into()));
        frame.function = Some("main.load".into());
        frame.file = Some("/srv/src/load.go".into());
        frame.line = Some(42);
        assert_eq!(line(&frame), ("main.load".into(), "load.go:42".into()));
    }
}
