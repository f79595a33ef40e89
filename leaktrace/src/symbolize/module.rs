//! The frames of one module.

use std::path::PathBuf;

use super::file::{Identity, identity};
use super::native::{Named, NamesFile, Native, SYSTEM_DEBUG_DIRS};
use super::{Debuginfod, Frame, Module, Open, PcKind, debug_dir};
use crate::go::GoBinary;
use crate::go::elf::Elf;
use crate::target::open_image;

/// An address within a module.
pub(super) struct Place {
    /// File offset of the address.
    pub(super) offset: u64,
    /// File offset of the beginning of the mapping.
    pub(super) mapping_offset: u64,
    pub(super) kind: PcKind,
}

/// A module's open files.
pub(super) struct ModuleSymbols {
    go: Option<GoBinary>,
    /// The module itself, when it could be opened.
    own: Option<Elf>,
    /// A file of debug information.
    debug: Option<Elf>,
    native: Native,
    /// Why files were not used.
    problems: Vec<String>,
}

impl ModuleSymbols {
    pub(super) fn open(
        module: &Module,
        open: &Open<'_>,
        debug_dirs: &[PathBuf],
        debuginfod: Option<&Debuginfod>,
        follows_links: bool,
    ) -> Self {
        let mut symbols = ModuleSymbols {
            go: None,
            own: None,
            debug: None,
            native: Native::new(Vec::new(), &[]),
            problems: Vec::new(),
        };
        if let Some(reason) = no_file(&module.path) {
            symbols.problems.push(reason);
            return symbols;
        }
        let whole = |path| NamesFile {
            path,
            symbols_only: false,
        };
        let mut files = Vec::new();
        let mut images = Vec::new();
        let debug = debug_dir::find(module, debug_dirs);
        if let Some((path, bytes, elf)) = debug.file {
            files.push(whole(path));
            images.push(bytes);
            symbols.debug = Some(elf);
        }
        match own_file(module, open) {
            Ok((path, bytes, elf)) => {
                let symbols_only = !follows_links && elf.leads_elsewhere();
                files.push(NamesFile { path, symbols_only });
                images.push(bytes);
                symbols.own = Some(elf);
                if symbols_only && let Some((path, elf)) = symbols.of_system(module) {
                    files.insert(0, whole(path));
                    symbols.debug = Some(elf);
                }
            }
            Err(problem) => symbols.problems.push(problem),
        }
        symbols.problems.extend(debug.refused);
        for image in images.into_iter().rev() {
            match GoBinary::parse(image) {
                Ok(Some(go)) => {
                    symbols.go = Some(go);
                    break;
                }
                Ok(None) => {}
                Err(error) => symbols.problems.push(error.to_string()),
            }
        }
        if symbols.lacks_debug_info(module)
            && let Some(servers) = debuginfod
        {
            match fetched(module, servers) {
                Ok((path, elf)) => {
                    files.insert(0, whole(path));
                    symbols.debug = Some(elf);
                }
                Err(problem) => symbols.problems.push(problem),
            }
        }
        symbols.native = Native::new(files, debug_dirs);
        symbols
    }

    /// The system's file of debug information, by the build id, if nothing else has any.
    fn of_system(&self, module: &Module) -> Option<(PathBuf, Elf)> {
        let mut files = self.own.iter().chain(&self.debug);
        if module.build_id.is_none() || files.any(Elf::has_debug_info) {
            return None;
        }
        let found = debug_dir::find(module, &SYSTEM_DEBUG_DIRS.map(PathBuf::from));
        found.file.map(|(path, _, elf)| (path, elf))
    }

    /// Whether nothing on this machine has the module's debug information.
    fn lacks_debug_info(&self, module: &Module) -> bool {
        let mut files = self.own.iter().chain(&self.debug);
        self.go.is_none()
            && !files.any(Elf::has_debug_info)
            && debug_dir::find(module, &SYSTEM_DEBUG_DIRS.map(PathBuf::from))
                .file
                .is_none()
    }

    pub(super) fn frames(&self, module: &Module, place: &Place) -> Vec<Frame> {
        let frame = |named: Named, reason| Frame {
            function: named.function,
            file: named.file,
            line: named.line,
            module: module.path.clone(),
            build_id: module.build_id.clone(),
            offset: place.offset,
            inlined: named.inlined,
            reason,
        };
        match self.named(module, place) {
            Ok(frames) => frames
                .into_iter()
                .map(|named| {
                    let nameless = named.function.is_none();
                    frame(
                        named,
                        nameless.then(|| "the function table is damaged".to_owned()),
                    )
                })
                .collect(),
            Err(reason) => {
                let nothing = Named {
                    function: None,
                    file: None,
                    line: None,
                    inlined: false,
                };
                vec![frame(nothing, Some(reason))]
            }
        }
    }

    fn named(&self, module: &Module, place: &Place) -> Result<Vec<Named>, String> {
        let path = &module.path;
        if self.own.is_none() && self.debug.is_none() {
            return Err(self.problems.join("; "));
        }
        let address = self
            .address(place)
            .ok_or_else(|| format!("offset {:#x} is in no segment of `{path}`", place.offset))?;
        if let Some(go) = &self.go {
            let frames = go.frames(address, place.kind);
            if !frames.is_empty() {
                return Ok(frames
                    .into_iter()
                    .map(|frame| Named {
                        function: frame.function,
                        file: frame.file,
                        line: frame.line,
                        inlined: frame.inlined,
                    })
                    .collect());
            }
        }
        let instruction = match place.kind {
            PcKind::Instruction => address,
            PcKind::Return | PcKind::Logical => address.saturating_sub(1),
        };
        self.native.frames(instruction).map_err(|error| {
            let has_symbols = self.own.iter().chain(&self.debug).any(Elf::has_symbols);
            let mut reasons = vec![match (error, has_symbols) {
                (Some(error), _) => error,
                (None, true) => format!("no symbol of `{path}` covers this address"),
                (None, false) => format!("`{path}` is stripped: it has no symbol table"),
            }];
            reasons.extend(self.problems.iter().cloned());
            reasons.join("; ")
        })
    }

    /// Link-time address. A return address may be one past the end of the segment.
    fn address(&self, place: &Place) -> Option<u64> {
        let back = u64::from(place.kind != PcKind::Instruction);
        let offset = place.offset.checked_sub(back)?;
        let address = match (&self.own, &self.debug) {
            (Some(own), _) => own.address_of(offset),
            (None, Some(debug)) => debug
                .address_of(offset)
                .or_else(|| debug.address_in_code(offset.checked_sub(place.mapping_offset)?)),
            (None, None) => None,
        };
        address?.checked_add(back)
    }
}

/// Why memory of that origin has no file.
fn no_file(path: &str) -> Option<String> {
    match path {
        "[vdso]" | "[vsyscall]" => Some(format!("`{path}` is code of the kernel, not of a file")),
        "" => Some("anonymous memory: code made at run time".to_owned()),
        _ if path.starts_with('[') || path.starts_with("//") => {
            Some(format!("`{path}` is no file: code made at run time"))
        }
        _ => None,
    }
}

/// The debug information of a module, from a server.
fn fetched(module: &Module, servers: &Debuginfod) -> Result<(PathBuf, Elf), String> {
    let Some(build_id) = &module.build_id else {
        return Err(format!(
            "`{}` has no build id to ask debuginfod for",
            module.path
        ));
    };
    let path = servers.find(build_id)?;
    let shown = path.display();
    let bytes = open_image(&path).map_err(|error| format!("failed to open `{shown}`: {error}"))?;
    let elf = Elf::parse(bytes).map_err(|error| format!("`{shown}`: {error}"))?;
    match identity(module, &elf) {
        Identity::Same => Ok((path, elf)),
        _ => Err(format!("`{shown}` is not of build id {build_id}")),
    }
}

fn own_file(module: &Module, open: &Open<'_>) -> Result<(PathBuf, bytes::Bytes, Elf), String> {
    let shown = &module.path;
    let path = open(module).ok_or_else(|| format!("the file of `{shown}` is not at hand"))?;
    let bytes = open_image(&path).map_err(|error| format!("failed to open `{shown}`: {error}"))?;
    let elf = Elf::parse(bytes.clone()).map_err(|error| format!("`{shown}`: {error}"))?;
    match identity(module, &elf) {
        Identity::Same | Identity::Unknown => Ok((path, bytes, elf)),
        Identity::Different(other) => {
            let wanted = module.build_id.as_deref().unwrap_or("none");
            Err(format!(
                "`{shown}` was replaced: it has build id {other}, not {wanted}"
            ))
        }
    }
}
