//! What a loss means for who reads the report.

/// Losses after which a free of a mapping may not have been seen.
pub(super) const MAPPING_LOSSES: [&str; 3] = [
    "ring_buffer_full",
    "calls_in_flight_full",
    "return_without_entry",
];

/// Go events that the runtime counted and no probe saw.
pub(super) const UNSEEN_GO_EVENTS: &str = "go_sampler_events_unseen";

/// In words; none for a cause this version does not know.
pub fn meaning_of_loss(cause: &str) -> Option<&'static str> {
    Some(match cause {
        "ring_buffer_full" => {
            "changes of the address space came faster than they were read; mmap and brk sites may \
             be off by as many calls"
        }
        "stack_map_full" => {
            "new stacks found no room; their allocations are counted at a site without a stack"
        }
        "live_object_map_full" => {
            "objects found no room; they are counted, but their ages are not known"
        }
        "site_map_full" => "new sites found no room; what they allocated is missing",
        "calls_in_flight_full" => {
            "too many system calls at a time; mmap and brk sites may be off by as many calls"
        }
        "return_without_entry" => {
            "system calls that were under way at the attach; mmap and brk sites may be off by as \
             many calls"
        }
        "stack_truncated" => "stacks deeper than the limit; their outermost frames are missing",
        "stack_unreadable" => {
            "stacks that ended in code without frame pointers; their outermost frames are missing"
        }
        "free_of_unseen" => {
            "frees of objects that were older than the attach, or whose birth was lost; they count \
             as preexisting"
        }
        "argument_unreadable" => {
            "arguments that could not be read from the target; those events are missing"
        }
        UNSEEN_GO_EVENTS => {
            "the Go runtime counted more samples than the probes saw; live bytes are right, the \
             ages of so many objects are not known"
        }
        "go_samples_unseen" => {
            "samples that Go's profile has and no probe saw; live bytes are right, the ages of so \
             many objects are not known"
        }
        "go_profile_unreadable" => {
            "Go's own profile could not be read at the end of an interval; the probes' counts stand \
             in for it"
        }
        "unmap_of_preexisting" => {
            "mappings from before the attach that were unmapped; they belong to no site"
        }
        "mappings_untracked" => {
            "mappings beyond the limit on pieces of address space; they are missing"
        }
        _ => return None,
    })
}
