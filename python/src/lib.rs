//! `plasma._core`: the Rust client as Python sees it.
//!
//! Thin on purpose: a class here holds a value of the Rust client, checks what Python passes in, lets
//! go of the interpreter lock while it waits, and turns errors into exceptions. What users see is
//! written in Python on top of it (`plasma/client.py`), and so is everything that is about Python:
//! pickling, arrays, Arrow, asyncio.

mod buffers;
mod client;
mod convert;
mod creating;
mod errors;
mod listing;
mod object_id;
mod pending;
mod subscription;
mod waiting;
mod writer;

use pyo3::prelude::*;

/// The module's contents; `plasma/_core.pyi` describes them for type checkers.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<object_id::ObjectID>()?;
    module.add_class::<client::Client>()?;
    module.add_class::<buffers::Buffer>()?;
    module.add_class::<writer::Writer>()?;
    module.add_class::<pending::PendingGet>()?;
    module.add_class::<pending::PendingWait>()?;
    module.add_class::<subscription::Subscription>()?;
    Ok(())
}
