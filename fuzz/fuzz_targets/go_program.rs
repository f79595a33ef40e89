//! Some bytes of a Go program, replaced.
#![no_main]

use std::sync::LazyLock;

use leaktrace::hostile;

/// `cargo xtask fuzz` says which.
static PROGRAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = std::env::var_os("LEAKTRACE_FUZZ_GO").expect("LEAKTRACE_FUZZ_GO names a Go program");
    std::fs::read(path).expect("the Go program can be read")
});

libfuzzer_sys::fuzz_target!(|patches: &[u8]| hostile::patched(&PROGRAM, patches));
