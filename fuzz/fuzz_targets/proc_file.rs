//! A file of `/proc/PID`.
#![no_main]

use leaktrace::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::proc_file(bytes));
