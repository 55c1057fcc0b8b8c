//! Proves that a copy of volumes is one point in time; see `docs/check.md`.

fn main() -> std::process::ExitCode {
    setline::check::cli::main()
}
