//! All benchmarks; see the library's documentation.

use std::process::ExitCode;

use prime_bench::suite::Ending;

/// What tells a script that another process can go on behind this one: a temporary failure, as sysexits.h counts them.
const LOST: u8 = 75;

fn main() -> ExitCode {
    // Inside the pool, as the program runs: no operation has to wake a worker and wait for it.
    match rayon::scope(|_| prime_bench::suite::run()) {
        Ok(Ending::Well) => ExitCode::SUCCESS,
        Ok(Ending::Wrong) => ExitCode::FAILURE,
        Ok(Ending::Lost) => ExitCode::from(LOST),
        Err(error) => {
            eprintln!("error: {}", prime::cli::said(&error));
            ExitCode::FAILURE
        }
    }
}
