//! A file that a process has mapped.
#![no_main]

use leaktrace::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::image(bytes));
