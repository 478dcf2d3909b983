//! Compiles `proto/plasma.proto` into `OUT_DIR`. protox reads the schema in Rust, so no `protoc`
//! has to be installed.

use std::io::Result;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=proto/plasma.proto");
    let schema =
        protox::compile(["proto/plasma.proto"], ["proto"]).map_err(std::io::Error::other)?;
    prost_build::Config::new().compile_fds(schema)
}
