//! `cargo xtask go-layouts`: what leaktrace knows of the Go runtime's memory, measured.
//!
//! Builds one small program with every known release of Go, reads the runtime's types from its debug
//! information, and writes them as a table, a column for each release. The reader is leaktrace's own;
//! leaktrace's tests hold the table against it.

#[path = "../../leaktrace/src/go/dwarf.rs"]
mod dwarf;
#[path = "../../leaktrace/src/go/runtime_types.rs"]
mod runtime_types;

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use object::{Object as _, ObjectSection as _};

use self::runtime_types::{Argument, Field, RuntimeTypes, Struct};
use crate::{
    go,
    run::{self},
    setup::Scope,
    workspace,
};

/// Where the table is, from the workspace's root.
const TABLE: &str = "leaktrace/src/go/runtime_types.txt";
/// The program whose runtime is measured: what it does not link has no types.
const PROGRAM: &str = "leaktrace/src/go/testing/everything.go";

const HEADER: &str = "\
# The types of the Go runtime, linux/amd64: made by `cargo xtask go-layouts`, do not edit.
#
# From the debug information of leaktrace/src/go/testing/everything.go as built by each release.
# A struct has its size, a field offset:size, in bytes; a func the registers of each argument at the
# entry (ABIInternal). `-`: not in that release.
";

/// Makes the table anew.
///
/// # Errors
///
/// When a toolchain is missing or fails, or the debug information cannot be read.
pub(crate) fn run() -> Result<()> {
    let mut versions = Scope::Full.go_versions();
    versions.sort_by_key(|version| numbers(version.number));
    let columns: Vec<RuntimeTypes> = versions
        .iter()
        .map(|version| measure(*version).with_context(|| format!("Go {}", version.number)))
        .collect::<Result<_>>()?;
    let mut rows = vec![row("version", versions.iter().map(|v| v.number.to_owned()))];
    rows.extend(struct_rows(&columns));
    for name in names(&columns, |types| types.constants.keys()) {
        let cells = columns.iter().map(|types| {
            let value = types.constants.get(name);
            value.map_or("-".to_owned(), i64::to_string)
        });
        rows.push(row(&format!("const {name}"), cells));
    }
    for name in names(&columns, |types| types.functions.keys()) {
        let cells = columns.iter().map(|types| {
            let arguments = types.functions.get(name);
            arguments.map_or("-".to_owned(), |arguments| signature(arguments))
        });
        rows.push(row(&format!("func {name}"), cells));
    }
    let path = workspace::root().join(TABLE);
    fs::write(&path, format!("{HEADER}{}", aligned(&rows)))
        .with_context(|| format!("failed to write `{}`", path.display()))?;
    eprintln!("go-layouts: {} rows in `{TABLE}`", rows.len());
    Ok(())
}

/// `1.9.10` as numbers, so that it sorts before `1.10.9`.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').flat_map(str::parse).collect()
}

/// The types of one release.
fn measure(version: go::Version) -> Result<RuntimeTypes> {
    let folder = workspace::target().join("go-layouts");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    let binary = folder.join(version.number);
    let mut go = version.build()?;
    go.args(["-ldflags=-compressdwarf=false", "-o"])
        .arg(&binary)
        .arg(workspace::root().join(PROGRAM))
        .env("GO111MODULE", "off");
    run::run(&mut go)?;
    read(&binary)
}

fn read(binary: &Path) -> Result<RuntimeTypes> {
    let data =
        fs::read(binary).with_context(|| format!("failed to read `{}`", binary.display()))?;
    let file = object::File::parse(&*data)?;
    let section = |name: &str| {
        let section = file.section_by_name(name);
        let section = section.with_context(|| format!("no `{name}` in `{}`", binary.display()))?;
        Ok::<_, anyhow::Error>(section.data()?)
    };
    dwarf::read(section(".debug_info")?, section(".debug_abbrev")?).map_err(|error| anyhow!(error))
}

fn struct_rows(columns: &[RuntimeTypes]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for name in names(columns, |types| types.structs.keys()) {
        let of: Vec<Option<&Struct>> = columns.iter().map(|t| t.structs.get(name)).collect();
        let sizes = of
            .iter()
            .map(|of| of.map_or("-".into(), |of| of.size.to_string()));
        rows.push(row(&format!("struct {name}"), sizes));
        // In the order in which they first come in memory.
        let mut fields: Vec<(&String, u32)> = Vec::new();
        for (field, Field { offset, .. }) in of.iter().rev().flatten().flat_map(|of| &of.fields) {
            if fields.iter().all(|(known, _)| *known != field) {
                fields.push((field, *offset));
            }
        }
        fields.sort_by_key(|(field, offset)| (*offset, *field));
        rows.extend(fields.iter().map(|(field, _)| {
            let cells = of.iter().map(|of| {
                let field = of.and_then(|of| of.fields.get(*field));
                field.map_or("-".into(), |field| {
                    format!("{}:{}", field.offset, field.size)
                })
            });
            row(&format!(".{field}"), cells)
        }));
    }
    rows
}

/// As `s=RAX,p=RBX,name=RCX+RDI,big=stack`; `()` without arguments.
fn signature(arguments: &[Argument]) -> String {
    if arguments.is_empty() {
        return "()".to_owned();
    }
    let argument = |argument: &Argument| {
        let registers = match argument.registers[..] {
            [] => "stack".to_owned(),
            ref registers => registers.join("+"),
        };
        format!("{}={registers}", argument.name)
    };
    arguments.iter().map(argument).collect::<Vec<_>>().join(",")
}

/// The names that any of the releases has.
fn names<'a, I: Iterator<Item = &'a String>>(
    columns: &'a [RuntimeTypes],
    of: impl Fn(&'a RuntimeTypes) -> I,
) -> BTreeSet<&'a String> {
    columns.iter().flat_map(of).collect()
}

fn row(head: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(head.to_owned()).chain(cells).collect()
}

/// Columns of one width; fields are told by their dot. The long rows of functions stay ragged.
fn aligned(rows: &[Vec<String>]) -> String {
    const HEAD: usize = 34;
    const CELL: usize = 10;
    let mut text = String::new();
    for row in rows {
        if row[0].starts_with("struct ") {
            text.push('\n');
        }
        text += &format!("{:HEAD$}", row[0]);
        for cell in &row[1..] {
            text += &format!(" {cell:>CELL$}");
        }
        text.push('\n');
    }
    text
}
