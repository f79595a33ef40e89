//! The functions of native allocators, by name.
//!
//! Arguments are numbered from 0, as the System V ABI passes them. Sources: ISO C and POSIX; the
//! manual pages of glibc and jemalloc 5; `gperftools/tcmalloc.h`; `mimalloc.h` 2; the Itanium C++ ABI
//! for the names of `operator new` and `operator delete`.

/// What a function does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Takes its first argument back.
    Free,
    /// Returns a block of `size` bytes, times `count` if there is one.
    Allocate { size: u8, count: Option<u8> },
    /// Stores a block of `size` bytes at `place` and returns zero.
    Store { place: u8, size: u8 },
    /// Returns `block` with a new size, moved or not; null leaves it as it was.
    Resize {
        block: u8,
        size: u8,
        count: Option<u8>,
    },
    /// Makes an exception.
    Throw,
    /// Resizes `block` in place and returns the size that it has then.
    Expand { block: u8, size: u8 },
}

/// A function that can be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// As in a symbol table.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) action: Action,
    /// An exception may leave it.
    pub(super) throws: bool,
    /// It may do nothing but hand on to another one, as the operators of C++ and `reallocarray` do.
    pub(super) may_hand_on: bool,
}

/// The function of that name.
pub(super) fn named(name: &str) -> Option<Function> {
    FUNCTIONS.iter().copied().find(|known| known.name == name)
}

impl Function {
    /// Whether it is one to which a function with that `action` may hand on all that it is to do.
    pub(super) fn suits(&self, action: Action) -> bool {
        match (self.action, action) {
            (Action::Throw, _) | (_, Action::Throw) => false,
            (own, action) => (own == Action::Free) == (action == Action::Free),
        }
    }
}

const fn function(name: &'static str, action: Action) -> Function {
    Function {
        name,
        action,
        throws: false,
        may_hand_on: false,
    }
}

const fn free(name: &'static str) -> Function {
    function(name, Action::Free)
}

const fn allocate(name: &'static str, size: u8) -> Function {
    function(name, Action::Allocate { size, count: None })
}

const fn array(name: &'static str, size: u8, count: u8) -> Function {
    let count = Some(count);
    function(name, Action::Allocate { size, count })
}

const fn store(name: &'static str) -> Function {
    function(name, Action::Store { place: 0, size: 2 })
}

const fn resize(name: &'static str, block: u8, size: u8) -> Function {
    let count = None;
    function(name, Action::Resize { block, size, count })
}

const fn resize_array(name: &'static str, block: u8, size: u8, count: u8) -> Function {
    let count = Some(count);
    function(name, Action::Resize { block, size, count })
}

const fn expand(name: &'static str) -> Function {
    function(name, Action::Expand { block: 0, size: 1 })
}

const fn throwing(function: Function) -> Function {
    Function {
        throws: true,
        ..function
    }
}

const fn new(name: &'static str) -> Function {
    Function {
        may_hand_on: true,
        ..throwing(allocate(name, 0))
    }
}

const fn new_nothrow(name: &'static str) -> Function {
    Function {
        may_hand_on: true,
        ..allocate(name, 0)
    }
}

const fn delete(name: &'static str) -> Function {
    Function {
        may_hand_on: true,
        ..free(name)
    }
}

/// Of several names at one address the first counts.
const FUNCTIONS: &[Function] = &[
    // C, POSIX, glibc, musl.
    allocate("malloc", 0),
    array("calloc", 1, 0),
    resize("realloc", 0, 1),
    Function {
        may_hand_on: true,
        ..resize_array("reallocarray", 0, 1, 2)
    },
    allocate("memalign", 1),
    allocate("aligned_alloc", 1),
    store("posix_memalign"),
    allocate("valloc", 0),
    allocate("pvalloc", 0),
    free("free"),
    free("cfree"),
    free("free_sized"),
    free("free_aligned_sized"),
    // jemalloc 5, with the prefixes that it is built with.
    allocate("mallocx", 0),
    resize("rallocx", 0, 1),
    expand("xallocx"),
    free("dallocx"),
    free("sdallocx"),
    allocate("je_malloc", 0),
    array("je_calloc", 1, 0),
    resize("je_realloc", 0, 1),
    allocate("je_memalign", 1),
    allocate("je_aligned_alloc", 1),
    store("je_posix_memalign"),
    allocate("je_valloc", 0),
    allocate("je_pvalloc", 0),
    free("je_free"),
    free("je_free_sized"),
    free("je_free_aligned_sized"),
    allocate("je_mallocx", 0),
    resize("je_rallocx", 0, 1),
    expand("je_xallocx"),
    free("je_dallocx"),
    free("je_sdallocx"),
    allocate("_rjem_malloc", 0),
    array("_rjem_calloc", 1, 0),
    resize("_rjem_realloc", 0, 1),
    allocate("_rjem_memalign", 1),
    allocate("_rjem_aligned_alloc", 1),
    store("_rjem_posix_memalign"),
    allocate("_rjem_valloc", 0),
    allocate("_rjem_pvalloc", 0),
    free("_rjem_free"),
    free("_rjem_free_sized"),
    free("_rjem_free_aligned_sized"),
    allocate("_rjem_mallocx", 0),
    resize("_rjem_rallocx", 0, 1),
    expand("_rjem_xallocx"),
    free("_rjem_dallocx"),
    free("_rjem_sdallocx"),
    // tcmalloc.
    allocate("tc_malloc", 0),
    array("tc_calloc", 1, 0),
    resize("tc_realloc", 0, 1),
    allocate("tc_memalign", 1),
    store("tc_posix_memalign"),
    allocate("tc_valloc", 0),
    allocate("tc_pvalloc", 0),
    free("tc_free"),
    free("tc_free_sized"),
    free("tc_cfree"),
    allocate("tc_malloc_skip_new_handler", 0),
    throwing(allocate("tc_new", 0)),
    throwing(allocate("tc_newarray", 0)),
    throwing(allocate("tc_new_aligned", 0)),
    throwing(allocate("tc_newarray_aligned", 0)),
    allocate("tc_new_nothrow", 0),
    allocate("tc_newarray_nothrow", 0),
    allocate("tc_new_aligned_nothrow", 0),
    allocate("tc_newarray_aligned_nothrow", 0),
    free("tc_delete"),
    free("tc_deletearray"),
    free("tc_delete_sized"),
    free("tc_deletearray_sized"),
    free("tc_delete_nothrow"),
    free("tc_deletearray_nothrow"),
    free("tc_delete_aligned"),
    free("tc_deletearray_aligned"),
    free("tc_delete_sized_aligned"),
    free("tc_deletearray_sized_aligned"),
    free("tc_delete_aligned_nothrow"),
    free("tc_deletearray_aligned_nothrow"),
    // mimalloc.
    allocate("mi_malloc", 0),
    allocate("mi_malloc_small", 0),
    allocate("mi_zalloc", 0),
    allocate("mi_zalloc_small", 0),
    array("mi_calloc", 1, 0),
    array("mi_mallocn", 1, 0),
    allocate("mi_malloc_aligned", 0),
    allocate("mi_malloc_aligned_at", 0),
    allocate("mi_zalloc_aligned", 0),
    allocate("mi_zalloc_aligned_at", 0),
    array("mi_calloc_aligned", 1, 0),
    array("mi_calloc_aligned_at", 1, 0),
    allocate("mi_memalign", 1),
    allocate("mi_aligned_alloc", 1),
    store("mi_posix_memalign"),
    allocate("mi_valloc", 0),
    allocate("mi_pvalloc", 0),
    resize("mi_realloc", 0, 1),
    resize("mi_rezalloc", 0, 1),
    resize("mi_realloc_aligned", 0, 1),
    resize("mi_realloc_aligned_at", 0, 1),
    resize("mi_rezalloc_aligned", 0, 1),
    resize("mi_rezalloc_aligned_at", 0, 1),
    resize_array("mi_reallocn", 0, 2, 1),
    resize_array("mi_reallocarray", 0, 2, 1),
    resize_array("mi_recalloc", 0, 2, 1),
    resize_array("mi_recalloc_aligned", 0, 2, 1),
    resize("mi_expand", 0, 1),
    allocate("mi_heap_malloc", 1),
    allocate("mi_heap_malloc_small", 1),
    allocate("mi_heap_zalloc", 1),
    array("mi_heap_calloc", 2, 1),
    array("mi_heap_mallocn", 2, 1),
    allocate("mi_heap_malloc_aligned", 1),
    allocate("mi_heap_malloc_aligned_at", 1),
    allocate("mi_heap_zalloc_aligned", 1),
    array("mi_heap_calloc_aligned", 2, 1),
    resize("mi_heap_realloc", 1, 2),
    resize("mi_heap_rezalloc", 1, 2),
    resize("mi_heap_realloc_aligned", 1, 2),
    resize_array("mi_heap_reallocn", 1, 3, 2),
    resize_array("mi_heap_recalloc", 1, 3, 2),
    throwing(allocate("mi_new", 0)),
    throwing(allocate("mi_new_aligned", 0)),
    throwing(array("mi_new_n", 1, 0)),
    throwing(resize("mi_new_realloc", 0, 1)),
    throwing(resize_array("mi_new_reallocn", 0, 2, 1)),
    allocate("mi_new_nothrow", 0),
    allocate("mi_new_aligned_nothrow", 0),
    free("mi_free"),
    free("mi_cfree"),
    free("mi_free_size"),
    free("mi_free_aligned"),
    free("mi_free_size_aligned"),
    // C++ (Itanium ABI). An allocator that throws makes its exception so.
    function("__cxa_allocate_exception", Action::Throw),
    // operator new, new[], with an alignment, and without exceptions; delete and delete[] with a
    // size, an alignment, or both.
    new("_Znwm"),
    new("_Znam"),
    new("_ZnwmSt11align_val_t"),
    new("_ZnamSt11align_val_t"),
    new_nothrow("_ZnwmRKSt9nothrow_t"),
    new_nothrow("_ZnamRKSt9nothrow_t"),
    new_nothrow("_ZnwmSt11align_val_tRKSt9nothrow_t"),
    new_nothrow("_ZnamSt11align_val_tRKSt9nothrow_t"),
    delete("_ZdlPv"),
    delete("_ZdaPv"),
    delete("_ZdlPvm"),
    delete("_ZdaPvm"),
    delete("_ZdlPvSt11align_val_t"),
    delete("_ZdaPvSt11align_val_t"),
    delete("_ZdlPvmSt11align_val_t"),
    delete("_ZdaPvmSt11align_val_t"),
    delete("_ZdlPvRKSt9nothrow_t"),
    delete("_ZdaPvRKSt9nothrow_t"),
    delete("_ZdlPvSt11align_val_tRKSt9nothrow_t"),
    delete("_ZdaPvSt11align_val_tRKSt9nothrow_t"),
];

/// Position in the table: of several names at one address the first counts.
pub(super) fn rank(function: &Function) -> usize {
    let place = FUNCTIONS
        .iter()
        .position(|known| known.name == function.name);
    place.unwrap_or(FUNCTIONS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once() {
        for (index, function) in FUNCTIONS.iter().enumerate() {
            assert_eq!(rank(function), index, "`{}`", function.name);
        }
        assert_eq!(
            named("malloc").map(|f| f.action),
            Some(Action::Allocate {
                size: 0,
                count: None
            })
        );
        assert_eq!(named("runtime.mallocgc"), None);
    }
}
