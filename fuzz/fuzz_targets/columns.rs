#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chronfs_fuzz::run("columns", bytes));
