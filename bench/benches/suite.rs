//! All benchmarks; see the library's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Inside the pool, as the program runs: no operation has to wake a worker and wait for it.
    match rayon::scope(|_| prime_bench::suite::run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
