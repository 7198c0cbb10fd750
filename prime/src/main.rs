//! The `prime` program.

fn main() -> std::process::ExitCode {
    prime::cli::main()
}
