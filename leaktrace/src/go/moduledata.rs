//! `runtime.firstmoduledata`: where text and function data begin.
//!
//! Layout: runtime/symtab.go, `type moduledata`. The fields up to `text` are the same in Go 1.18
//! to 1.27; `gofunc` moves (Go 1.20 added `covctrs`, 1.27 added `typedesclen`, `itaboffset` and
//! `itabsize`). It is found by its first field, a pointer to pclntab's header, in `.go.module`
//! (Go ≥ 1.26), `.noptrdata` or `.data`: the sections' names are not needed.

use super::elf::Elf;
use super::pclntab::Pclntab;

const FUNCNAMETAB: usize = 1;
const PCTAB: usize = 10;
const MINPC: usize = 20;
const TEXT: usize = 22;
const ETEXT: usize = 23;
/// Words read: past `gofunc` of every version.
const WORDS: usize = 48;

/// What pclntab lookups need of a Go module.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModuleData {
    /// Address that function entries are relative to.
    pub(super) text: u64,
    /// Address that function data (inline trees) is relative to; unknown for versions not
    /// measured.
    pub(super) gofunc: Option<u64>,
}

pub(super) fn find(elf: &Elf, pclntab: &Pclntab, minor: Option<u32>) -> Option<ModuleData> {
    elf.pointers_to(pclntab.address)
        .into_iter()
        .find_map(|address| {
            let words = elf.words(address, WORDS)?;
            let word = |index: usize| words.get(index).copied();
            // A chance pointer to the header is not followed by these.
            let genuine = word(FUNCNAMETAB)? == pclntab.funcnametab_address()
                && word(PCTAB)? == pclntab.pctab_address()
                && word(TEXT)? <= word(MINPC)?
                && word(MINPC)? < word(ETEXT)?;
            let gofunc = gofunc_index(minor).and_then(word);
            genuine.then_some(ModuleData {
                text: word(TEXT)?,
                gofunc: gofunc.filter(|gofunc| elf.read(*gofunc, 1).is_some()),
            })
        })
}

/// Index of the word `gofunc`.
fn gofunc_index(minor: Option<u32>) -> Option<usize> {
    match minor? {
        18 | 19 => Some(38),
        20..=26 => Some(40),
        27 => Some(43),
        _ => None,
    }
}
