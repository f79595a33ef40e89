//! Sizes, durations and shares as they are typed.
#![no_main]

#[path = "../../leaktrace/src/args/values.rs"]
mod values;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = (
        values::duration(text),
        values::interval(text),
        values::size(text),
    );
    let _ = (
        values::ring_bytes(text),
        values::percent(text),
        values::sample(text),
    );
    let _ = values::entries();
});
