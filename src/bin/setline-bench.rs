//! The benchmark harness (P6). Its parts and its method are in `bench/`.

#[path = "../../bench/mod.rs"]
mod bench;

fn main() -> std::process::ExitCode {
    bench::main()
}
