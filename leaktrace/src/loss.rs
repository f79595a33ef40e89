//! Causes of loss: their names in captures and reports, and what each means for a reader.

use leaktrace_common::loss;

/// Names of the causes that the kernel side counts; the index is that of its `LOSSES` map.
pub const KERNEL: [&str; loss::COUNT as usize] = {
    let mut names = [""; loss::COUNT as usize];
    names[loss::RING_FULL as usize] = "ring_buffer_full";
    names[loss::STACK_MAP_FULL as usize] = "stack_map_full";
    names[loss::LIVE_MAP_FULL as usize] = "live_object_map_full";
    names[loss::COUNTER_MAP_FULL as usize] = "site_map_full";
    names[loss::THREADS_FULL as usize] = "threads_full";
    names[loss::RETURN_WITHOUT_ENTRY as usize] = "return_without_entry";
    names[loss::STACK_TRUNCATED as usize] = "stack_truncated";
    names[loss::STACK_UNREADABLE as usize] = "stack_unreadable";
    names[loss::FREE_OF_UNSEEN as usize] = "free_of_unseen";
    names[loss::ARGUMENT_UNREADABLE as usize] = "argument_unreadable";
    names[loss::SAMPLE_RING_FULL as usize] = "sample_ring_full";
    names[loss::CALL_ABANDONED as usize] = "call_abandoned";
    names[loss::BLOCK_RING_FULL as usize] = "block_ring_full";
    names[loss::PROCESS_NOT_FOLLOWED as usize] = "process_not_followed";
    names[loss::BLOCK_MISTAKEN as usize] = "block_mistaken";
    names
};

/// Samples that Go's profile has and the probes did not see.
pub const GO_SAMPLES_UNSEEN: &str = "go_samples_unseen";
/// Intervals at which Go's profile could not be read.
pub const GO_PROFILE_UNREADABLE: &str = "go_profile_unreadable";
/// Sweeps of sampled Go objects' spans that nobody looked at.
pub const GO_SWEEPS_UNSEEN: &str = "go_sweeps_unseen";
/// Sampled Go objects for which there was no room.
pub const GO_OBJECTS_UNFOLLOWED: &str = "go_objects_unfollowed";
/// Mappings from before the attach that were unmapped.
pub const UNMAP_OF_PREEXISTING: &str = "unmap_of_preexisting";
/// Blocks seen in a window that could not be followed beyond it.
pub const BLOCKS_NOT_FOLLOWED: &str = "blocks_not_followed";
/// Allocations seen in windows beyond the limit on sites.
pub const BLOCKS_UNSEPARATED: &str = "blocks_unseparated";
/// Mapping calls beyond the limit on pieces of address space.
pub const MAPPINGS_UNTRACKED: &str = "mappings_untracked";

/// Runs of the kernel side's programs that the kernel left out.
pub const PROGRAMS_SKIPPED: &str = "programs_skipped";

/// Goroutines that moved whenever they were read, summed over the censuses.
pub const GOROUTINES_UNSTABLE: &str = "goroutines_unstable";
/// Goroutines that could not be read, summed over the censuses.
pub const GOROUTINES_UNREADABLE: &str = "goroutines_unreadable";
/// Goroutines in groups beyond the limit, summed over the censuses.
pub const GOROUTINES_UNGROUPED: &str = "goroutines_ungrouped";
/// Goroutines beyond the limit of those followed one by one, summed over the censuses.
pub const GOROUTINES_NOT_FOLLOWED: &str = "goroutines_not_followed";
/// Goroutines whose stacks were not searched for heap objects.
pub const GOROUTINE_STACKS_UNSEARCHED: &str = "goroutine_stacks_unsearched";
/// Censuses that failed.
pub const GOROUTINE_CENSUS_FAILED: &str = "goroutine_census_failed";

/// Losses after which a free of a mapping may not have been seen.
pub const OF_MAPPINGS: [&str; 5] = [
    PROGRAMS_SKIPPED,
    KERNEL[loss::RING_FULL as usize],
    KERNEL[loss::THREADS_FULL as usize],
    KERNEL[loss::RETURN_WITHOUT_ENTRY as usize],
    MAPPINGS_UNTRACKED,
];

/// Whether a cause only says that something is older than the attach: nothing is missing.
pub fn is_expected(cause: &str) -> bool {
    [KERNEL[loss::FREE_OF_UNSEEN as usize], UNMAP_OF_PREEXISTING].contains(&cause)
}

/// Losses after which a free of a block may not have been seen.
pub const OF_BLOCKS: [&str; 2] = [
    KERNEL[loss::ARGUMENT_UNREADABLE as usize],
    KERNEL[loss::BLOCK_MISTAKEN as usize],
];

/// What a cause means, in words; `None` for one that this version does not know.
pub fn meaning(cause: &str) -> Option<&'static str> {
    Some(match cause {
        "ring_buffer_full" => {
            "changes of the address space came faster than they were read; mmap and brk sites may \
             be off by as many calls (--ring-buffer makes room)"
        }
        "stack_map_full" => {
            "new stacks found no room; their allocations are counted at a site without a stack \
             (--stacks makes room)"
        }
        "live_object_map_full" => {
            "objects found no room: those of a Go heap are counted, but their ages are not known; \
             blocks of native allocators are missing (--live-objects makes room)"
        }
        "site_map_full" => "new sites found no room; the probes' counts of them are missing",
        "return_without_entry" => {
            "system calls whose beginning was not seen, as those under way at the attach; mmap and \
             brk sites may be off by as many calls"
        }
        "stack_truncated" => "stacks deeper than the limit; their outermost frames are missing",
        "stack_unreadable" => {
            "stacks that could not be read; their allocations are counted at a site without a stack"
        }
        "free_of_unseen" => {
            "frees of objects that were older than the attach, or whose birth was lost; they count \
             as preexisting, nothing is missing"
        }
        "argument_unreadable" => {
            "arguments that could not be read from the target; those events are missing"
        }
        "sample_ring_full" => {
            "sampled Go objects came faster than they were read; the others of their size stand in \
             for them"
        }
        "call_abandoned" => {
            "calls of an allocator that were left without returning (longjmp, an exception, the end of \
             the thread); a block that such a call had allocated is missing"
        }
        "block_ring_full" => {
            "allocations and frees in a window came faster than they were read; that window was left out and \
             the next ones are shorter"
        }
        "block_mistaken" => {
            "threads in which a block was not the one that glibc's cache of free ones had foretold; since only one in \
             256 is checked, up to so many times 256 blocks may count as others, and as never freed"
        }
        "process_not_followed" => {
            "children for which there was no room, or none among the events; they, and their children, are not \
             followed"
        }
        "blocks_not_followed" => {
            "blocks that outlived their window found no room; should they die in a later one, that counts as \
             the death of a block of their size, not of their site (--live-objects makes room)"
        }
        "blocks_unseparated" => {
            "allocations of more sites than can be told apart; they are counted at a site without a stack"
        }
        "threads_full" => {
            "calls, of allocators or of the kernel, by threads for which there was no room; what they allocated \
             and freed is missing"
        }
        PROGRAMS_SKIPPED => {
            "times, at most, that the kernel left out leaktrace's program, since one was under way on that processor \
             already; what it would have seen is missing"
        }
        GO_SAMPLES_UNSEEN => {
            "samples that Go's profile has and no probe saw; live bytes are right, the ages of so \
             many objects are not known"
        }
        GO_PROFILE_UNREADABLE => {
            "Go's own profile could not be read at the end of an interval; the probes' counts stand \
             in for it"
        }
        GO_SWEEPS_UNSEEN => {
            "collections came faster than they could be looked at: an object that died meanwhile and \
             whose place another took may count as alive"
        }
        GO_OBJECTS_UNFOLLOWED => {
            "sampled Go objects beyond the limit; they are missing (--live-objects makes room)"
        }
        UNMAP_OF_PREEXISTING => {
            "mappings from before the attach that were unmapped, whole or in part; they belong to \
             no site"
        }
        MAPPINGS_UNTRACKED => {
            "mappings beyond the limit on pieces of address space; they are missing"
        }
        GOROUTINES_UNSTABLE => {
            "goroutines that moved each time they were read, summed over the censuses; they are \
             counted without a stack"
        }
        GOROUTINES_UNREADABLE => {
            "goroutines that could not be read, summed over the censuses; they are missing"
        }
        GOROUTINES_UNGROUPED => {
            "goroutines in groups beyond the limit, summed over the censuses; they count in the \
             total only"
        }
        GOROUTINES_NOT_FOLLOWED => {
            "goroutines beyond the first million, summed over the censuses; they are counted, but \
             not how long they wait"
        }
        GOROUTINE_STACKS_UNSEARCHED => {
            "goroutines whose stacks were not searched for heap objects; what they pin is missing"
        }
        GOROUTINE_CENSUS_FAILED => {
            "censuses of goroutines that failed, as the last one when the process has ended"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_cause_has_a_name_and_a_meaning() {
        let goroutines = [
            super::GOROUTINES_UNSTABLE,
            super::GOROUTINES_UNREADABLE,
            super::GOROUTINES_UNGROUPED,
            super::GOROUTINES_NOT_FOLLOWED,
            super::GOROUTINE_STACKS_UNSEARCHED,
            super::GOROUTINE_CENSUS_FAILED,
        ];
        let causes = super::KERNEL.iter().chain(&super::OF_MAPPINGS);
        for cause in causes.chain(&goroutines) {
            assert!(super::meaning(cause).is_some(), "`{cause}`");
        }
    }
}
