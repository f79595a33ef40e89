//! Names as their languages write them, from names as linkers have them.
//!
//! A mangled name can be a bomb: each of its types may be made of two of the one before, so that 255 bytes
//! stand for gigabytes (`ten_bytes_a_doubling` below). So it is written into a bounded place, and a name
//! that does not fit stays as it is.

use std::fmt::{self, Write as _};

use cpp_demangle::{BorrowedSymbol, DemangleOptions, ParseOptions};

/// Longer names are cut, in bytes, before and after.
pub(super) const MAX_NAME: usize = 16 << 10;

/// How deep the parts of a C++ name may be nested, in calls of its parser, which tries both ways at each: with 96, the
/// default, 127 bytes that fuzzing found took a second and 100 MB. Of 140,103 names in the largest libraries
/// of one Debian 12, counted once, 140,080 are not nested deeper.
const NESTED: u32 = 64;

/// The name of a function of Rust or C++ as it stands in the source; any other as it is, cut to
/// [`MAX_NAME`].
pub(crate) fn demangled(name: &str) -> String {
    let whole = (name.len() <= MAX_NAME).then_some(name);
    let shown = whole.and_then(|name| rust(name).or_else(|| cpp(name)));
    shown.unwrap_or_else(|| cut(name).to_owned())
}

/// The beginning of a text, [`MAX_NAME`] bytes at most.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME)]
}

fn rust(name: &str) -> Option<String> {
    let symbol = rustc_demangle::try_demangle(name).ok()?;
    let mut out = Bounded(String::new());
    write!(out, "{symbol:#}").ok().map(|()| out.0)
}

fn cpp(name: &str) -> Option<String> {
    let options = ParseOptions::default().recursion_limit(NESTED);
    let symbol = BorrowedSymbol::new_with_options(name.as_bytes(), &options).ok()?;
    let mut out = Bounded(String::new());
    let written = symbol.structured_demangle(&mut out, &DemangleOptions::default());
    written.ok().map(|()| out.0)
}

/// Text that does not grow beyond [`MAX_NAME`].
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_NAME {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_languages_and_of_none() {
        let rust = "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE";
        assert_eq!(demangled(rust), "core::fmt::Write::write_fmt");
        assert_eq!(demangled("_RNvC6_123foo3bar"), "123foo::bar");
        let cpp = "_ZNSt6vectorIiSaIiEE9push_backERKi";
        assert_eq!(
            demangled(cpp),
            "std::vector<int, std::allocator<int> >::push_back(int const&)"
        );
        for name in ["main", "runtime.mallocgc", "_Z", "_R", "", "_ZN3foo"] {
            assert_eq!(demangled(name), name);
        }
    }

    /// `f(pair<int, int>, pair<A, A>, pair<B, B>, …)`: unbounded, 60 of them are 2^60 words.
    #[test]
    fn ten_bytes_a_doubling() {
        let digit = |n: usize| char::from(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[n]);
        let number = |n: usize| match n {
            0..36 => format!("S{}_", digit(n)),
            _ => format!("S{}{}_", digit(n / 36), digit(n % 36)),
        };
        let mut name = "_Z1fSt4pairIiiE".to_owned();
        for last in (0..60).map(number) {
            name.push_str(&format!("S_I{last}{last}E"));
        }
        assert_eq!(demangled(&name), name);
    }

    /// Its parts are tried as one thing and as another, each in the other. With the parser's own bound that takes more
    /// memory than there may be here.
    #[test]
    fn one_that_is_tried_both_ways_at_each_step() {
        let name = include_bytes!("../../../fuzz/corpus/name/found-2192c046e9c109");
        crate::hostile::name(name);
        let name = String::from_utf8_lossy(name);
        assert_eq!(demangled(&name), name);
        let nested = format!("_Z1f{}i{}", "St6vectorI".repeat(8), "E".repeat(8));
        assert!(demangled(&nested).starts_with("f(std::vector<std::vector<"));
    }

    #[test]
    fn endless_names_are_cut() {
        for letter in ["x", "é"] {
            let long = format!("_Z{}", letter.repeat(1 << 20));
            let cut = demangled(&long);
            assert!(cut.len() <= MAX_NAME && long.starts_with(&cut));
        }
    }
}
