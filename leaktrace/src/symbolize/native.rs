//! Names from DWARF and ELF symbols, by blazesym.

use std::path::{Path, PathBuf};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};

use super::{
    contained::contained,
    demangle::{cut, demangled},
    unpacked::is_bounded,
};

/// Where a system keeps debug information.
pub(super) const SYSTEM_DEBUG_DIRS: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// A logical frame: function, file, line, inlined.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) function: Option<String>,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) inlined: bool,
}

/// A file to look addresses up in.
pub(super) struct NamesFile {
    pub(super) path: PathBuf,
    /// Its symbol table only: blazesym opens whatever file the debug information names, and files by the name
    /// that this one has where it comes from.
    pub(super) symbols_only: bool,
}

/// Files to look an address up in, best first.
pub(super) struct Native {
    symbolizer: Symbolizer,
    files: Vec<NamesFile>,
    /// What is told where no file has an answer, if one of them was not looked into.
    refused: Option<String>,
}

impl Native {
    pub(super) fn new(files: Vec<NamesFile>, debug_dirs: &[PathBuf]) -> Self {
        // blazesym follows build ids and .gnu_debuglink into these, and checks the checksum of the latter; a
        // file that it finds there leads to its supplementary one by .gnu_debugaltlink.
        let system = SYSTEM_DEBUG_DIRS.map(PathBuf::from);
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .enable_demangling(false)
            .set_debug_dirs(Some(debug_dirs.iter().cloned().chain(system)))
            .build();
        let (files, refused): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| is_bounded(&file.path));
        let refused = refused.first().map(|file| {
            let path = file.path.display();
            format!(
                "failed to read symbols of `{path}`: its sections may unpack to more than 4 GiB"
            )
        });
        Native {
            symbolizer,
            files,
            refused,
        }
    }

    /// The frames at a link-time address, innermost first. The error is what stood in the way;
    /// `None`: no symbol covers the address.
    pub(super) fn frames(&self, address: u64) -> Result<Vec<Named>, Option<String>> {
        let mut errors = Vec::new();
        for file in &self.files {
            // Where DWARF cannot be read, symbols may still be.
            for debug_syms in [true, false] {
                if debug_syms && file.symbols_only {
                    continue;
                }
                match self.lookup(&file.path, debug_syms, address) {
                    Ok(Some(frames)) => return Ok(frames),
                    Ok(None) => break,
                    Err(error) => errors.push(error),
                }
            }
        }
        Err(errors.into_iter().next().or_else(|| self.refused.clone()))
    }

    fn lookup(
        &self,
        file: &Path,
        debug_syms: bool,
        address: u64,
    ) -> Result<Option<Vec<Named>>, String> {
        let mut elf = Elf::new(file);
        elf.debug_syms = debug_syms;
        let (source, input) = (Source::Elf(elf), Input::VirtOffset(address));
        // blazesym 0.2 takes a file at its word here and there.
        let found = contained(|| self.symbolizer.symbolize_single(&source, input));
        let error = match found {
            Some(Ok(Symbolized::Sym(symbol))) => return Ok(Some(frames(&symbol))),
            Some(Ok(Symbolized::Unknown(_))) => return Ok(None),
            Some(Err(error)) => format!("{error:#}"),
            None => "it contradicts itself".to_owned(),
        };
        Err(format!(
            "failed to read symbols of `{}`: {error}",
            file.display()
        ))
    }
}

/// blazesym has the inlined functions outermost first, each with the position reached in it.
fn frames(symbol: &Sym<'_>) -> Vec<Named> {
    let named = |name: &str, code: Option<&CodeInfo<'_>>, inlined| Named {
        function: Some(demangled(name)),
        file: code.map(|code| cut(&code.to_path().to_string_lossy()).to_owned()),
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
        inlined,
    };
    let inlined = symbol.inlined.iter().rev();
    let inlined = inlined.map(|inlined| named(&inlined.name, inlined.code_info.as_ref(), true));
    let outermost = named(&symbol.name, symbol.code_info.as_deref(), false);
    inlined.chain([outermost]).collect()
}
