//! The `prime` program.
fn main() {}
