//! A name as linkers have it.
#![no_main]

use leaktrace::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::name(bytes));
