//! `runtime.firstmoduledata`: where text and function data begin.
//!
//! It is found by its first field, a pointer to pclntab's header, in `.go.module` (Go ≥ 1.26),
//! `.noptrdata` or `.data`: the sections' names are not needed. Its layout is that of the release, or
//! of the binary's own debug information. In a release that is not known at all the fields up to
//! `etext` are tried where they have been in all measured ones, and believed only if they agree with
//! pclntab in every point; `gofunc`, which has moved, is then not known.

use super::elf::Elf;
use super::pclntab::Pclntab;
use super::runtime_types::Struct;

/// What pclntab lookups need of a Go module.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModuleData {
    /// Where it is itself; unknown where only pclntab's header was found.
    pub(super) address: Option<u64>,
    /// Address that function entries are relative to.
    pub(super) text: u64,
    /// Address that function data (inline trees) is relative to; unknown for releases that are not.
    pub(super) gofunc: Option<u64>,
}

/// `layout` is that of `runtime.moduledata`; `knows_all` says that it is this release's.
pub(super) fn find(
    elf: &Elf,
    pclntab: &Pclntab,
    layout: &Struct,
    knows_all: bool,
) -> Option<ModuleData> {
    let (first, last) = pclntab.bounds()?;
    elf.pointers_to(pclntab.address)
        .into_iter()
        .find_map(|address| {
            let words = elf.words(address, layout.size as usize / 8)?;
            let word = |field: &str| {
                let at = layout.fields.get(field)?.offset as usize / 8;
                words.get(at).copied()
            };
            let text = word("text")?;
            // A chance pointer to the header is not followed by these.
            let genuine = word("funcnametab")? == pclntab.funcnametab_address()
                && word("pctab")? == pclntab.pctab_address()
                && word("minpc")? == text.checked_add(u64::from(first))?
                && word("maxpc")? == text.checked_add(u64::from(last))?
                && text <= word("minpc")?
                && word("minpc")? < word("etext")?;
            let gofunc = word("gofunc").filter(|_| knows_all);
            genuine.then_some(ModuleData {
                address: Some(address),
                text,
                gofunc: gofunc.filter(|gofunc| elf.read(*gofunc, 1).is_some()),
            })
        })
}
