//! Memory of a running Go program.
#![no_main]

use std::sync::LazyLock;

use leaktrace::{go::GoBinary, hostile};

/// `cargo xtask fuzz` says which.
static PROGRAM: LazyLock<GoBinary> = LazyLock::new(|| {
    let path = std::env::var_os("LEAKTRACE_FUZZ_GO").expect("LEAKTRACE_FUZZ_GO names a Go program");
    let bytes = std::fs::read(path).expect("the Go program can be read");
    GoBinary::parse(bytes.into())
        .ok()
        .flatten()
        .expect("it is a Go program")
});

libfuzzer_sys::fuzz_target!(|words: &[u8]| hostile::memory(&PROGRAM, words));
