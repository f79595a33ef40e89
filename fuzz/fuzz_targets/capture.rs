//! A capture file, as it is.
#![no_main]

use leaktrace::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::capture(bytes));
