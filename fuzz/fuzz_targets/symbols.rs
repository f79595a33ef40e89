//! A file asked for names.
#![no_main]

use leaktrace::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::symbols(bytes));
