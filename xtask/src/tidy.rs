//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md that can be read off the sources.
//!
//! It also runs among xtask's tests. Tests inside a module (from `#[cfg(test)]` to the end of the file,
//! and files named `tests.rs`) may do what the module may not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// The crates whose sources are read.
const CRATES: [&str; 5] = [
    "leaktrace",
    "leaktrace-common",
    "leaktrace-ebpf",
    "tests",
    "xtask",
];

/// Modules of `leaktrace/src` that may name aya.
const LOADERS: [&str; 2] = ["loader", "drain"];

/// Modules of `leaktrace/src` that turn values into values: no kernel, no files, no clock.
const PURE: [&str; 14] = [
    "go",
    "plan",
    "address_space",
    "duty_cycle",
    "overhead",
    "turnover",
    "capture",
    "live_heap",
    "series",
    "verdict",
    "goroutine_history",
    "goroutine_verdict",
    "report",
    "export",
];

/// What a pure module does not name.
const IMPURE: [&str; 6] = ["aya", "aya_log", "fs", "Instant", "SystemTime", "unsafe"];

/// The longest a file may get, in lines. The kernel side is read on one screen a module.
const MAX_LINES: usize = 500;
const MAX_LINES_KERNEL: usize = 200;
/// Tests are read case by case.
const MAX_LINES_TESTS: usize = 800;

/// Prints what is not in order.
///
/// # Errors
///
/// When anything is not.
pub(crate) fn run() -> Result<()> {
    let violations = violations(&workspace::root())?;
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    eprintln!("tidy: all in order");
    Ok(())
}

/// One line for each breach, `PATH: what`.
fn violations(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut commands = Vec::new();
    for crate_name in CRATES {
        for path in sources(&root.join(crate_name))? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("failed to read `{}`", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path);
            found.extend(
                breaches(name, &text).map(|breach| format!("{}: {breach}", name.display())),
            );
            if crate_name == "leaktrace" {
                commands.extend(subcommands(&without_comments_and_strings(&text)));
            }
        }
    }

    let documentation = documentation(root)?;
    for command in commands {
        if !documentation.contains(&format!("leaktrace {command}")) {
            found.push(format!(
                "docs: neither README.md nor docs/ says what `leaktrace {command}` does"
            ));
        }
    }
    for file in ["CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        if !root.join(file).is_file() {
            found.push(format!("{file}: is not there"));
        }
    }
    Ok(found)
}

/// What one file breaks; `name` is relative to the workspace.
fn breaches(name: &Path, text: &str) -> impl Iterator<Item = String> {
    let mut found = Vec::new();
    let limit = if name.starts_with("leaktrace-ebpf") {
        MAX_LINES_KERNEL
    } else if is_test(name) {
        MAX_LINES_TESTS
    } else {
        MAX_LINES
    };
    let lines = text.lines().count();
    if lines > limit {
        found.push(format!(
            "{lines} lines; more than {limit} are hard to follow"
        ));
    }
    let code = without_comments_and_strings(text);
    if code.contains("#[allow") || code.contains("#![allow") {
        found.push("an exception to a lint is `#[expect(…, reason = \"…\")]`".into());
    }

    if let Some(module) = module(name)
        && !is_test(name)
    {
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        let words: Vec<&str> = words(code).collect();
        if PURE.contains(&module) {
            let impure = IMPURE.iter().filter(|word| words.contains(word));
            found.extend(impure.map(|word| format!("`{word}` in a module that is pure")));
        } else if !LOADERS.contains(&module) && words.iter().any(|word| word.starts_with("aya")) {
            found.push("only the loader and the drain know aya".into());
        }
    }
    found.into_iter()
}

/// Whether a file holds tests and what they need, and nothing else.
fn is_test(name: &Path) -> bool {
    let stem = name.file_stem().and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem == "testing" || stem.ends_with("tests"))
        || name.components().any(|part| part.as_os_str() == "tests")
}

/// The module of `leaktrace/src` that a file belongs to.
fn module(name: &Path) -> Option<&str> {
    let below = name.strip_prefix("leaktrace/src").ok()?;
    below
        .components()
        .next()?
        .as_os_str()
        .to_str()
        .map(|first| first.trim_end_matches(".rs"))
}

/// The Rust files of a crate, in order; none where there is no such crate yet.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::from_iter(Some(folder.join("build.rs")).filter(|file| file.is_file()));
    let mut folders = vec![folder.join("src"), folder.join("tests")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// README.md and every page of docs/.
fn documentation(root: &Path) -> Result<String> {
    let mut text =
        fs::read_to_string(root.join("README.md")).context("failed to read `README.md`")?;
    let Ok(pages) = fs::read_dir(root.join("docs")) else {
        return Ok(text);
    };
    for page in pages {
        let path = page?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            text += &fs::read_to_string(&path)
                .with_context(|| format!("failed to read `{}`", path.display()))?;
        }
    }
    Ok(text)
}

/// The names that clap gives the variants of the enum that derives `Subcommand`.
fn subcommands(code: &str) -> Vec<String> {
    let Some((_, rest)) = code.split_once("Subcommand)]") else {
        return Vec::new();
    };
    let Some((_, body)) = rest.split_once('{') else {
        return Vec::new();
    };
    let mut names = Vec::new();
    let (mut depth, mut is_start) = (0_usize, true);
    for (at, character) in body.char_indices() {
        match character {
            '{' | '(' | '[' => depth += 1,
            '}' if depth == 0 => break,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => is_start = true,
            _ if depth == 0 && is_start && character.is_ascii_uppercase() => {
                names.push(kebab(words(&body[at..]).next().unwrap_or_default()));
                is_start = false;
            }
            _ => {}
        }
    }
    names
}

/// `DryRun` as `dry-run`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for (at, character) in name.char_indices() {
        if character.is_ascii_uppercase() && at > 0 {
            kebab.push('-');
        }
        kebab.push(character.to_ascii_lowercase());
    }
    kebab
}

/// The identifiers and keywords of some code.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
        .filter(|word| !word.is_empty())
}

/// The code alone: comments, and what is between quotes, are blanked. Lines stay where they are.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = literal_or_comment(rest);
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(
                rest[..skipped]
                    .chars()
                    .filter(|&character| character == '\n'),
            );
            rest = &rest[skipped..];
        }
    }
    code
}

/// How many bytes at the start are a comment or a literal; 0 when it is neither.
fn literal_or_comment(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return text.find("*/").map_or(text.len(), |end| end + 2);
    }
    let hashes = text
        .strip_prefix('r')
        .map(|rest| rest.len() - rest.trim_start_matches('#').len());
    if let Some(hashes) = hashes
        && text[1 + hashes..].starts_with('"')
    {
        let end = format!("\"{}", "#".repeat(hashes));
        let from = hashes + 2;
        return text[from..]
            .find(&end)
            .map_or(text.len(), |at| from + at + end.len());
    }
    if text.starts_with('"') {
        let mut characters = text.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => drop(characters.next()),
                '"' => return at + 1,
                _ => {}
            }
        }
        return text.len();
    }
    // A character, not a lifetime: only those that would be mistaken for something else matter.
    ["'\"'", "'\\\"'", "'\\''", "'/'", "'{'", "'}'"]
        .iter()
        .find(|literal| text.starts_with(**literal))
        .map_or(0, |literal| literal.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_in_order() {
        assert_eq!(
            violations(&workspace::root()).unwrap(),
            Vec::<String>::new()
        );
    }

    fn check(name: &str, text: &str) -> Vec<String> {
        breaches(Path::new(name), text).collect()
    }

    #[test]
    fn pure_modules_know_no_kernel_no_files_and_no_clock() {
        for text in [
            "use aya::Ebpf;",
            "use std::{fs, io};",
            "let now = std::time::Instant::now();",
            "use std::time::SystemTime;",
            "unsafe { x() }",
        ] {
            assert_eq!(check("leaktrace/src/plan/mod.rs", text).len(), 1, "{text}");
            assert_eq!(check("leaktrace/src/verdict.rs", text).len(), 1, "{text}");
        }
        let fine = "//! no aya, no fs\n#![forbid(unsafe_code)]\nlet s = \"unsafe \\\" fs\"; r#\"aya \" fs\"#; '\"'; \
                    #[cfg(test)] mod tests { use std::fs; }";
        assert_eq!(
            check("leaktrace/src/verdict.rs", fine),
            Vec::<String>::new()
        );
        assert_eq!(
            check("leaktrace/src/target/mod.rs", "use std::fs;"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn aya_stays_in_the_loader_and_the_drain() {
        assert_eq!(
            check("leaktrace/src/record.rs", "use aya::maps::HashMap;").len(),
            1
        );
        assert_eq!(
            check("leaktrace/src/drain/ring.rs", "use aya::maps::RingBuf;"),
            Vec::<String>::new()
        );
        assert_eq!(
            check("leaktrace/src/record.rs", "// aya does"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn lints_are_expected_not_allowed_and_files_stay_short() {
        assert_eq!(
            check("xtask/src/x.rs", concat!("#[", "allow(dead_code)]")).len(),
            1
        );
        assert_eq!(
            check(
                "xtask/src/x.rs",
                "#[expect(dead_code, reason = \"#[allow\")]"
            ),
            Vec::<String>::new()
        );
        assert_eq!(check("xtask/src/x.rs", &"\n".repeat(501)).len(), 1);
        assert_eq!(check("leaktrace-ebpf/src/x.rs", &"\n".repeat(201)).len(), 1);
        assert_eq!(
            check("leaktrace/src/x.rs", &"\n".repeat(500)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn subcommands_are_read_from_their_enum() {
        let code = "#[derive(Debug, Subcommand)]\npub enum Command {\n #[command(alias = )]\n Record(RecordArgs),\n \
                    DryRun { path: PathBuf, Other: u8 },\n Top,\n}\nenum Later { A }";
        assert_eq!(subcommands(code), ["record", "dry-run", "top"]);
        assert_eq!(subcommands("enum Command { A }"), Vec::<String>::new());
    }
}
