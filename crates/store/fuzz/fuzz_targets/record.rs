#![no_main]

#[path = "../limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| limit::held(data.len(), || karman_store::fuzz::record(data)));
