//! Typed layouts from the runtime's types. A field must have the size that its reader takes it to
//! have, and be where it is taken to be: a runtime in which it is not is refused.

use super::super::runtime_types::{Field, RuntimeTypes};
use super::{Bucket, Channel, G, Heap, Span, Special, UnknownLayout};

/// Bytes of a struct; the largest that is read as a whole has some thousand.
const MAX_STRUCT: u64 = 1 << 17;
/// Frames of a stack in the heap profile.
const MAX_DEPTH: i64 = 1 << 16;

impl RuntimeTypes {
    /// These, and what only `other` has.
    pub(super) fn or(mut self, other: Self) -> Self {
        for (name, of) in other.structs {
            self.structs.entry(name).or_insert(of);
        }
        for (name, value) in other.constants {
            self.constants.entry(name).or_insert(value);
        }
        for (name, arguments) in other.functions {
            self.functions.entry(name).or_insert(arguments);
        }
        self
    }

    /// The names that both have and that say different things.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let structs = self.structs.iter();
        let structs =
            structs.filter(|(name, of)| other.structs.get(*name).is_some_and(|o| o != *of));
        let constants = self.constants.iter();
        let constants =
            constants.filter(|(name, of)| other.constants.get(*name).is_some_and(|o| o != *of));
        let functions = self.functions.iter();
        let functions =
            functions.filter(|(name, of)| other.functions.get(*name).is_some_and(|o| o != *of));
        let names = structs.map(|(name, _)| name);
        let names = names.chain(constants.map(|(name, _)| name));
        names
            .chain(functions.map(|(name, _)| name))
            .cloned()
            .collect()
    }

    /// Checks that no struct is larger than any runtime has it: so much is read for one of them, and a
    /// binary can say anything of itself.
    pub(super) fn expect_believable(&self) -> Result<(), UnknownLayout> {
        for (name, of) in &self.structs {
            let ends = of.fields.values();
            let ends = ends.map(|field| u64::from(field.offset) + u64::from(field.size));
            let end = ends.max().unwrap_or(0).max(of.size.into());
            let most = match name.as_str() {
                "runtime.mheap" | "runtime.heapArena" | "runtime.pageAlloc" => 1 << 30,
                _ => MAX_STRUCT,
            };
            if end > most {
                return Err(UnknownLayout(format!(
                    "`{name}` has {end} bytes in its runtime"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn field(&self, of: &str, field: &str) -> Result<Field, UnknownLayout> {
        let found = self.structs.get(of).and_then(|of| of.fields.get(field));
        found
            .copied()
            .ok_or_else(|| missing(&format!("{of}.{field}")))
    }

    /// Offset of a field that must have this size.
    pub(super) fn at(&self, of: &str, field: &str, size: u32) -> Result<u64, UnknownLayout> {
        let found = self.field(of, field)?;
        if found.size != size {
            return Err(UnknownLayout(format!(
                "`{of}.{field}` has {} bytes in its runtime, not {size}",
                found.size
            )));
        }
        Ok(found.offset.into())
    }

    /// Checks that a field is where its reader takes it to be.
    pub(super) fn expect(
        &self,
        of: &str,
        field: &str,
        offset: u64,
        size: u32,
    ) -> Result<(), UnknownLayout> {
        match self.at(of, field, size)? {
            found if found == offset => Ok(()),
            found => Err(UnknownLayout(format!(
                "`{of}.{field}` is at {found} in its runtime, not at {offset}"
            ))),
        }
    }

    pub(super) fn size_of(&self, of: &str) -> Result<u64, UnknownLayout> {
        let found = self.structs.get(of).ok_or_else(|| missing(of))?;
        Ok(found.size.into())
    }

    pub(super) fn constant(&self, name: &str) -> Result<i64, UnknownLayout> {
        self.constants
            .get(name)
            .copied()
            .ok_or_else(|| missing(name))
    }

    pub(super) fn expect_constant(&self, name: &str, value: i64) -> Result<(), UnknownLayout> {
        match self.constant(name)? {
            found if found == value => Ok(()),
            found => Err(UnknownLayout(format!(
                "`{name}` is {found} in its runtime, not {value}"
            ))),
        }
    }

    pub(super) fn bucket(&self) -> Result<Bucket, UnknownLayout> {
        const B: &str = "runtime.bucket";
        let cycle_size = self.size_of("runtime.memRecordCycle")?;
        self.expect("runtime.memRecordCycle", "allocs", 0, 8)?;
        self.expect("runtime.memRecordCycle", "frees", 8, 8)?;
        self.expect("runtime.memRecord", "active", 0, cycle_size as u32)?;
        self.expect(
            "runtime.memRecord",
            "future",
            cycle_size,
            (cycle_size as u32).saturating_mul(3),
        )?;
        self.expect_constant("runtime.memProfile", Bucket::MEM_PROFILE as i64)?;
        let max_stack = self
            .constant("runtime.maxProfStackDepth")
            .or_else(|_| self.constant("runtime.maxStack"))?;
        if cycle_size < 16 || !(0..=MAX_DEPTH).contains(&max_stack) {
            return Err(UnknownLayout(format!(
                "its heap profile has records of {cycle_size} bytes and stacks of {max_stack} frames"
            )));
        }
        Ok(Bucket {
            header_size: self.size_of(B)?,
            allnext: self.at(B, "allnext", 8)?,
            typ: self.at(B, "typ", 8)?,
            size: self.at(B, "size", 8)?,
            nstk: self.at(B, "nstk", 8)?,
            cycle_size,
            max_stack: max_stack as u64,
        })
    }

    pub(super) fn special(&self) -> Result<Special, UnknownLayout> {
        const S: &str = "runtime.special";
        let kind = self.constant("runtime._KindSpecialProfile")?;
        self.expect(
            "runtime.specialprofile",
            "special",
            0,
            self.size_of(S)? as u32,
        )?;
        Ok(Special {
            next: self.at(S, "next", 8)?,
            offset: self.field(S, "offset")?.offset.into(),
            kind: self.at(S, "kind", 1)?,
            kind_profile: u8::try_from(kind).map_err(|_| missing("_KindSpecialProfile"))?,
            bucket: self.at("runtime.specialprofile", "b", 8)?,
        })
    }

    pub(super) fn g(&self) -> Result<G, UnknownLayout> {
        const G_: &str = "runtime.g";
        self.expect("runtime.stack", "lo", 0, 8)?;
        self.expect("runtime.stack", "hi", 8, 8)?;
        self.expect("runtime.gobuf", "sp", 0, 8)?;
        self.expect("runtime.gobuf", "pc", 8, 8)?;
        let sched = self.at(G_, "sched", self.size_of("runtime.gobuf")? as u32)?;
        let mut g = G {
            size: 0,
            stack: self.at(G_, "stack", 16)?,
            sched,
            sched_bp: sched + self.at("runtime.gobuf", "bp", 8)?,
            status: self.at(G_, "atomicstatus", 4)?,
            goid: self.at(G_, "goid", 8)?,
            waitsince: self.at(G_, "waitsince", 8)?,
            waitreason: self.at(G_, "waitreason", 1)?,
            tracking_seq: self.at(G_, "trackingSeq", 1)?,
            gopc: self.at(G_, "gopc", 8)?,
            startpc: self.at(G_, "startpc", 8)?,
            parent_goid: self.at(G_, "parentGoid", 8).ok(),
            waiting: self.at(G_, "waiting", 8)?,
        };
        let last = [
            g.sched_bp,
            g.waitsince,
            g.waitreason,
            g.gopc,
            g.startpc,
            g.waiting,
        ];
        let last = last.into_iter().chain(g.parent_goid).max();
        g.size = last.unwrap_or(0) + 8;
        Ok(g)
    }

    pub(super) fn channel(&self) -> Result<Channel, UnknownLayout> {
        const H: &str = "runtime.hchan";
        self.expect(H, "qcount", 0, 8)?;
        self.expect(H, "dataqsiz", 8, 8)?;
        self.expect(H, "elemsize", 24, 2)?;
        self.expect(H, "closed", 28, 4)?;
        self.expect("runtime.waitq", "first", 0, 8)?;
        let recvq = self.at(H, "recvq", 16)?;
        self.expect(H, "sendq", recvq + 16, 16)?;
        let sudog_c = self.offset_of("runtime.sudog", "c")?;
        Ok(Channel { sudog_c, recvq })
    }

    pub(super) fn offset_of(&self, of: &str, field: &str) -> Result<u64, UnknownLayout> {
        Ok(self.field(of, field)?.offset.into())
    }

    pub(super) fn span(&self) -> Result<Span, UnknownLayout> {
        const S: &str = "runtime.mspan";
        self.expect_constant("runtime._PageSize", Span::PAGE_SIZE as i64)?;
        self.expect_constant("runtime.mSpanInUse", Span::IN_USE.into())?;
        let (freeindex, nelems) = (self.field(S, "freeindex")?, self.field(S, "nelems")?);
        Ok(Span {
            size: self.size_of(S)?,
            start_addr: self.at(S, "startAddr", 8)?,
            npages: self.at(S, "npages", 8)?,
            freeindex: freeindex.offset.into(),
            freeindex_size: freeindex.size.into(),
            free_index_for_scan: self.at(S, "freeIndexForScan", freeindex.size)?,
            nelems: nelems.offset.into(),
            nelems_size: nelems.size.into(),
            alloc_cache: self.at(S, "allocCache", 8)?,
            alloc_bits: self.at(S, "allocBits", 8)?,
            gcmark_bits: self.at(S, "gcmarkBits", 8)?,
            sweepgen: self.at(S, "sweepgen", 4)?,
            alloc_count: self.at(S, "allocCount", 2)?,
            spanclass: self.at(S, "spanclass", 1)?,
            state: self.at(S, "state", 1)?,
            elemsize: self.at(S, "elemsize", 8)?,
            limit: self.at(S, "limit", 8)?,
            specials: self.at(S, "specials", 8)?,
            large_type: self.at(S, "largeType", 8).ok(),
            is_user_arena_chunk: self.at(S, "isUserArenaChunk", 1).ok(),
        })
    }

    pub(super) fn heap(&self) -> Result<Heap, UnknownLayout> {
        const H: &str = "runtime.mheap";
        Ok(Heap {
            allspans: self.at(H, "allspans", 24)?,
            sweepgen: self.at(H, "sweepgen", 4)?,
            pages_in_use: self.at(H, "pagesInUse", 8)?,
        })
    }
}

pub(super) fn missing(name: &str) -> UnknownLayout {
    UnknownLayout(format!("`{name}` is not among the types of its runtime"))
}
