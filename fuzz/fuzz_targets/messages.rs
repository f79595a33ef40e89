//! The messages of a capture, in blocks that are whole.
#![no_main]

use leaktrace::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::messages(bytes));
