//! Where variables are, by the expressions of debug information that Go writes.

use gimli::{AttributeValue, Dwarf, Expression, Operation, Unit, constants as dw};

use super::dwarf::{Die, Slice};

/// The link-time address of a variable that has one.
pub(super) fn address_of(
    dwarf: &Dwarf<Slice<'_>>,
    unit: &Unit<Slice<'_>>,
    entry: &Die<'_>,
) -> gimli::Result<Option<u64>> {
    let Some(AttributeValue::Exprloc(location)) = entry.attr_value(dw::DW_AT_location) else {
        return Ok(None);
    };
    Ok(match location.operations(unit.encoding()).next()? {
        Some(Operation::Address { address }) => Some(address),
        Some(Operation::AddressIndex { index }) => Some(dwarf.address(unit, index)?),
        _ => None,
    })
}

/// Where a variable is when its function stands at `pc`.
pub(super) fn location_at<'a>(
    dwarf: &Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    entry: &Die<'a>,
    pc: u64,
) -> gimli::Result<Option<Expression<Slice<'a>>>> {
    let Some(location) = entry.attr_value(dw::DW_AT_location) else {
        return Ok(None);
    };
    if let AttributeValue::Exprloc(always) = location {
        return Ok(Some(always));
    }
    let Some(mut list) = dwarf.attr_locations(unit, location)? else {
        return Ok(None);
    };
    while let Some(entry) = list.next()? {
        if (entry.range.begin..entry.range.end).contains(&pc) {
            return Ok(Some(entry.data));
        }
    }
    Ok(None)
}

/// How far into a variable a place on the stack is, which is `from_cfa` bytes from the canonical frame address; `None`:
/// not in it. A frame's base is that address in Go.
pub(super) fn offset_in(
    location: Expression<Slice<'_>>,
    encoding: gimli::Encoding,
    size: u64,
    from_cfa: i64,
) -> gimli::Result<Option<u64>> {
    let within = |at: Option<i64>, size: u64| {
        let offset = from_cfa.checked_sub(at?)?;
        u64::try_from(offset).ok().filter(|offset| *offset < size)
    };
    let mut operations = location.operations(encoding);
    let (mut at, mut before, mut is_whole) = (None, 0_u64, true);
    while let Some(operation) = operations.next()? {
        match operation {
            Operation::FrameOffset { offset } => at = Some(offset),
            Operation::CallFrameCFA => at = Some(0),
            Operation::Piece { size_in_bits, .. } => {
                is_whole = false;
                let size = size_in_bits / 8;
                if let Some(offset) = within(at, size) {
                    return Ok(Some(before + offset));
                }
                at = None;
                before = before.saturating_add(size);
            }
            // Something computed, or in a register.
            _ => at = None,
        }
    }
    Ok(within(at, size).filter(|_| is_whole))
}
