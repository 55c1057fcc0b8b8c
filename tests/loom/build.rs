fn main() {
    println!("cargo:rustc-cfg=setline_loom");
}
