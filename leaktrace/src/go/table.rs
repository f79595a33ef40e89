//! The runtime's types in the releases that were measured: `runtime_types.txt`, a table that `cargo
//! xtask go-layouts` makes. Its columns are releases; a minor release is taken to be the same in all
//! of its patches, and a column is read in a fraction of a millisecond, when it is wanted.

use std::collections::BTreeMap;

use super::GoVersion;
use super::runtime_types::{Argument, Field, RuntimeTypes, Struct};

const TEXT: &str = include_str!("runtime_types.txt");

/// GOEXPERIMENTs that leave the runtime's types as they are: cryptography, language, coverage. Others
/// may change any.
const HARMLESS_EXPERIMENTS: [&str; 14] = [
    "boringcrypto",
    "opensslcrypto",
    "systemcrypto",
    "ms_nocgo_opensslcrypto",
    "strictfipsruntime",
    "coverageredesign",
    "nocoverageredesign",
    "unified",
    "loopvar",
    "rangefunc",
    "aliastypeparams",
    "noaliastypeparams",
    "jsonv2",
    "none",
];

/// The measured releases, oldest first.
pub(super) fn versions() -> impl Iterator<Item = &'static str> {
    let line = TEXT.lines().find_map(|line| line.strip_prefix("version "));
    line.unwrap_or_default().split_whitespace()
}

/// The types of a release and the measured release they are from. The error says why there are none.
pub(super) fn types(version: &GoVersion) -> Result<(RuntimeTypes, &'static str), String> {
    let of = |reason: &str| {
        format!(
            "the runtime's types in {} are not known: {reason}",
            version.text
        )
    };
    if !version.is_release() {
        return Err(of("it is no release"));
    }
    let unknown = version
        .experiments()
        .find(|e| !HARMLESS_EXPERIMENTS.contains(e));
    if let Some(experiment) = unknown {
        return Err(of(&format!("it was built with GOEXPERIMENT={experiment}")));
    }
    let same_minor = |measured: &&str| {
        let mut numbers = measured.split('.').map(str::parse);
        numbers.next() == Some(Ok(version.major)) && numbers.next() == Some(Ok(version.minor))
    };
    let index = versions().position(|measured| same_minor(&measured));
    let index = index.ok_or_else(|| {
        let measured = versions().collect::<Vec<_>>().join(", ");
        of(&format!("measured were {measured}"))
    })?;
    let measured = versions().nth(index).unwrap_or_default();
    Ok((column(index), measured))
}

/// `runtime.moduledata` of the measured release that has the same: Go 1.18 has that of 1.19, and
/// 1.20 that of 1.21 (runtime/symtab.go). For any other, `false` and the newest one's.
pub(super) fn moduledata(version: &GoVersion) -> (Struct, bool) {
    let same = match version.minor {
        18 => 19,
        20 => 21,
        minor => minor,
    };
    let wanted = format!("{}.{same}.", version.major);
    let index = versions().position(|measured| measured.starts_with(&wanted));
    let is_known = index.is_some() && version.is_release();
    let mut types = column(index.unwrap_or_else(|| versions().count().saturating_sub(1)));
    let found = types.structs.remove("runtime.moduledata");
    (found.unwrap_or_default(), is_known)
}

/// A column of the table.
fn column(index: usize) -> RuntimeTypes {
    let mut types = RuntimeTypes::default();
    // Fields before their struct has a size belong to none: it is not in this release.
    let mut open: Option<(&str, Struct)> = None;
    for line in TEXT.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let (kind, name) = match first.strip_prefix('.') {
            Some(field) => (".", field),
            None => (first, words.next().unwrap_or_default()),
        };
        let cell = words.nth(index).filter(|cell| *cell != "-");
        if kind != "." {
            close(open.take(), &mut types.structs);
        }
        match (kind, cell) {
            ("struct", Some(size)) => {
                let size = size.parse().unwrap_or_default();
                let fields = BTreeMap::new();
                open = Some((name, Struct { size, fields }));
            }
            (".", Some(cell)) => {
                if let (Some((_, of)), Some(field)) = (&mut open, field(cell)) {
                    of.fields.insert(name.to_owned(), field);
                }
            }
            ("const", Some(value)) => {
                let value = value.parse().unwrap_or_default();
                types.constants.insert(name.to_owned(), value);
            }
            ("func", Some(cell)) => {
                types.functions.insert(name.to_owned(), arguments(cell));
            }
            _ => {}
        }
    }
    close(open, &mut types.structs);
    types
}

fn close(open: Option<(&str, Struct)>, structs: &mut BTreeMap<String, Struct>) {
    structs.extend(open.map(|(name, of)| (name.to_owned(), of)));
}

fn field(cell: &str) -> Option<Field> {
    let (offset, size) = cell.split_once(':')?;
    Some(Field {
        offset: offset.parse().ok()?,
        size: size.parse().ok()?,
    })
}

/// `s=RAX,name=RBX+RCX,big=stack`, or `()`.
fn arguments(cell: &'static str) -> Vec<Argument> {
    let argument = |text: &'static str| {
        let (name, registers) = text.split_once('=')?;
        Some(Argument {
            name: name.to_owned(),
            registers: registers.split('+').filter(|r| *r != "stack").collect(),
        })
    };
    cell.split(',').filter_map(argument).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Result<&'static str, String> {
        types(&GoVersion::parse(text).unwrap()).map(|(_, measured)| measured)
    }

    #[test]
    fn what_was_not_measured_is_refused() {
        for (text, measured) in [
            ("go1.27.3", "1.27.3"),
            ("go1.27.0", "1.27.3"),
            ("go1.19", "1.19.8"),
            ("go1.22.1 X:boringcrypto", "1.22.10"),
            ("go1.22.9 (Red Hat 1.22.9-2.el9)", "1.22.10"),
            ("go1.24.4 X:nocoverageredesign,boringcrypto", "1.24.11"),
        ] {
            assert_eq!(known(text), Ok(measured), "{text}");
        }
        for (text, says) in [
            ("go1.18.1", "measured were 1.19.8, "),
            ("go1.20.14", "measured were"),
            ("go1.29.3", "measured were"),
            ("go2.21.1", "measured were"),
            ("go1.27rc1", "no release"),
            ("go1.26beta1", "no release"),
            ("devel go1.27-0a1b2c3 Mon Jan 5", "no release"),
            ("go1.25.1 X:greenteagc", "GOEXPERIMENT=greenteagc"),
            (
                "go1.22.3 X:boringcrypto,noallocheaders",
                "GOEXPERIMENT=noallocheaders",
            ),
        ] {
            let error = known(text).unwrap_err();
            assert!(error.contains(says) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn columns_are_told_apart() {
        let of = |text: &str| types(&GoVersion::parse(text).unwrap()).unwrap().0;
        let (old, new) = (of("go1.19.8"), of("go1.27.3"));
        let at = |offset, size| Some(Field { offset, size });
        let field = |types: &RuntimeTypes, of: &str, field: &str| {
            types.structs.get(of)?.fields.get(field).copied()
        };
        assert_eq!(field(&old, "runtime.mspan", "nelems"), at(56, 8));
        assert_eq!(field(&new, "runtime.mspan", "nelems"), at(50, 2));
        assert_eq!(field(&old, "runtime.mspan", "largeType"), None);
        assert_eq!(old.structs.get("runtime.spanInlineMarkBits"), None);
        assert_eq!(new.structs["runtime.memRecordCycle"].size, 16);
        assert_eq!(new.constants["runtime._KindSpecialProfile"], 4);
        assert_eq!(old.functions["runtime.gcMarkTermination"], []);
        assert_eq!(
            new.functions["runtime.freeSpecial"][1],
            Argument {
                name: "p".to_owned(),
                registers: vec!["RBX"]
            }
        );
    }
}
