//! The operator's command line; all of it is in [`setline::cli`].

fn main() -> std::process::ExitCode {
    setline::cli::main().into()
}
