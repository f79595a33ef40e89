//! Names of a program's data: variables by the symbol table, else sections.

use bytes::Bytes;

use super::elf::Elf;

/// Where an address of data is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The variable, as in `main.table`; absent in a stripped program.
    pub symbol: Option<String>,
    /// The section, as in `.bss`.
    pub section: Option<String>,
    /// Bytes from the beginning of the variable or, without one, of the section.
    pub offset: u64,
}

/// The variables of a program, by address.
#[derive(Clone, Debug, Default)]
pub struct DataSymbols {
    /// Address, size and name, in the order of addresses.
    symbols: Vec<(u64, u64, String)>,
    /// The same of sections.
    sections: Vec<(u64, u64, String)>,
}

impl DataSymbols {
    /// Those of any ELF file, and the link-time address of its first byte. `None`: it is none.
    pub fn of_file(image: Bytes) -> Option<(Self, u64)> {
        let elf = Elf::parse(image).ok()?;
        let first = elf.address_of(0)?;
        Some((Self::of(&elf), first))
    }

    pub(super) fn of(elf: &Elf) -> Self {
        let mut symbols: Vec<_> = elf
            .symbols()
            .filter(|symbol| symbol.size > 0 && elf.is_data(symbol.address))
            .map(|symbol| {
                let name = String::from_utf8_lossy(symbol.name).into_owned();
                (symbol.address, symbol.size, name)
            })
            .collect();
        symbols.sort_unstable();
        let mut sections = elf.data_sections();
        sections.sort_unstable();
        Self { symbols, sections }
    }

    /// Link-time address of the variable of that name.
    pub fn address(&self, name: &str) -> Option<u64> {
        let mut named = self.symbols.iter().filter(|(.., symbol)| symbol == name);
        named.next().map(|(address, ..)| *address)
    }

    /// The variable in which a link-time address lies, or the section.
    pub fn place(&self, address: u64) -> Place {
        let symbol = containing(&self.symbols, address);
        let section = containing(&self.sections, address);
        Place {
            symbol: symbol.map(|(_, name)| name.to_owned()),
            section: section.map(|(_, name)| name.to_owned()),
            offset: symbol.or(section).map_or(0, |(offset, _)| offset),
        }
    }
}

/// How far inside which of them, sorted by address, an address lies.
fn containing(ranges: &[(u64, u64, String)], address: u64) -> Option<(u64, &str)> {
    let after = ranges.partition_point(|(start, ..)| *start <= address);
    let (start, size, name) = ranges.get(after.checked_sub(1)?)?;
    (address - start < *size).then_some((address - start, name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_by_its_variable_or_else_its_section() {
        let named = |start, size, name: &str| (start, size, name.to_owned());
        let symbols = DataSymbols {
            symbols: vec![named(0x110, 8, "main.table"), named(0x120, 16, "main.list")],
            sections: vec![named(0x100, 0x100, ".bss")],
        };
        let place = |address| symbols.place(address);
        assert_eq!(place(0x128).symbol.as_deref(), Some("main.list"));
        assert_eq!(place(0x128).offset, 8);
        let between = place(0x118);
        assert_eq!((between.symbol, between.offset), (None, 0x18));
        assert_eq!(between.section.as_deref(), Some(".bss"));
        assert_eq!(place(0x200).section, None);
    }
}
