//! docs/kernel-features.md, of what ran.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result};

use super::{guest::Ran, list, tests::ALL};
use crate::workspace;

const HEAD: &str = "\
# Kernels that leaktrace was run on

`cargo xtask vm` boots the newest kernel that Debian ships of each of these series and runs tests of
`tests/tests` in it, with the file that is shipped; it wrote this page. What a kernel has is as
`leaktrace check` finds it there, asking the kernel and not its version. 5.10 is there to be refused.

";

/// Writes it anew.
///
/// # Errors
///
/// When it cannot be written.
pub(super) fn write(ran: &[(&str, Ran)]) -> Result<()> {
    let path = workspace::root().join("docs/kernel-features.md");
    fs::write(&path, page(ran)?).with_context(|| format!("failed to write `{}`", path.display()))
}

fn page(ran: &[(&str, Ran)]) -> Result<String> {
    let mut page = HEAD.to_owned();
    let mut row = |name: &str, cell: &dyn Fn(&str, &Ran) -> String| {
        let cells: Vec<_> = ran.iter().map(|(series, ran)| cell(series, ran)).collect();
        writeln!(page, "| {name} | {} |", cells.join(" | "))
    };
    row("Linux", &|series, _| series.to_owned())?;
    row("---", &|_, _| "---".to_owned())?;
    row("kernel", &|_, ran| format!("`{}`", ran.release))?;
    let features = ran.first().map_or(&[][..], |(_, first)| &first.features);
    for feature in features {
        let name = feature["name"].as_str().unwrap_or_default();
        row(name, &|_, ran| answer(ran, name).to_owned())?;
    }
    for program in ALL.programs {
        for test in program.tests {
            let cell = |series: &str, _: &Ran| {
                let was_run = list(series).has(program.name, test);
                if was_run { "passed" } else { "not run" }.to_owned()
            };
            row(&format!("`{}::{test}`", program.name), &cell)?;
        }
    }
    Ok(page)
}

fn answer(ran: &Ran, name: &str) -> &'static str {
    let feature = ran.features.iter().find(|feature| feature["name"] == name);
    let Some(feature) = feature else {
        return "not asked";
    };
    let found = feature["found"].as_str().unwrap_or_default();
    match feature["ok"] == true {
        true if found.starts_with("no") => "no",
        true => "yes",
        false => "**no**",
    }
}
