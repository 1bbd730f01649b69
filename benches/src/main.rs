//! Benchmarks: one JSON object a line.
fn main() {}
