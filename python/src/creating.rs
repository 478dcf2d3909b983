//! The objects that a client is creating: how long each is kept, and when it is forgotten.

use std::collections::HashMap;

use plasma::ObjectId;
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use crate::writer::Writer;

/// An object that is neither sealed nor aborted.
pub enum Creating {
    /// Lives until then.
    Kept(Py<Writer>),
    /// Lives as long as the user's own buffer.
    Released(Py<PyWeakrefReference>),
}

impl Creating {
    /// What it is written with, unless that has gone.
    pub fn writer(&self, py: Python<'_>) -> Option<Py<Writer>> {
        match self {
            Self::Kept(writer) => Some(writer.clone_ref(py)),
            Self::Released(weak) => {
                let writer = weak.bind(py).upgrade_as::<Writer>().ok().flatten();
                writer.map(Bound::unbind)
            }
        }
    }
}

/// Makes room for one more object, and before the table has to grow takes out those whose last
/// buffer has gone: nobody says when that happens.
pub fn make_room(py: Python<'_>, creating: &mut HashMap<ObjectId, Creating>) -> Vec<Creating> {
    if creating.len() < creating.capacity() {
        return Vec::new();
    }
    let is_gone = |_: &ObjectId, creating: &mut Creating| creating.writer(py).is_none();
    let gone = creating.extract_if(is_gone).map(|(_, creating)| creating).collect();
    // So much that the next look at all of them is as many objects away.
    creating.reserve(creating.len() + 1);
    gone
}
