//! Names the shared library as programs ask for it: its number rises when they have to be compiled again.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libchronfs.so.0");
}
