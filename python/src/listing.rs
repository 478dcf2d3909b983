//! What the store tells about itself, as dictionaries.

use plasma::client::{ClientInfo, ObjectInfo, ObjectState, Stats};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::object_id::ObjectID;

/// The word for a state.
pub const fn state_name(state: ObjectState) -> &'static str {
    match state {
        ObjectState::Absent => "absent",
        ObjectState::Created => "created",
        ObjectState::Sealed => "sealed",
    }
}

/// All objects by id. The first six keys are the original's, times in whole seconds.
pub fn objects<'py>(py: Python<'py>, objects: &[ObjectInfo]) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    for object in objects {
        let entry = PyDict::new(py);
        entry.set_item("data_size", object.data_size)?;
        entry.set_item("metadata_size", object.metadata_size)?;
        entry.set_item("ref_count", object.ref_count)?;
        entry.set_item("create_time", object.create_time.as_secs())?;
        let seconds = object.construct_duration.map(|time| time.as_secs());
        match seconds {
            Some(seconds) => entry.set_item("construct_duration", seconds)?,
            None => entry.set_item("construct_duration", -1)?,
        }
        entry.set_item("state", state_name(object.state))?;
        entry.set_item("delete_pending", object.delete_pending)?;
        entry.set_item("creator", object.creator.map(|creator| creator.0))?;
        all.set_item(ObjectID(object.id), entry)?;
    }
    Ok(all)
}

/// The numbers of the store, and everything that only counts up under `counters`.
pub fn stats<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    all.set_item("capacity", stats.capacity)?;
    all.set_item("used", stats.used)?;
    all.set_item("pinned", stats.pinned)?;
    all.set_item("evictable", stats.evictable)?;
    all.set_item("largest_free_run", stats.largest_free_run)?;
    all.set_item("objects", stats.objects)?;
    all.set_item("unsealed_objects", stats.unsealed_objects)?;
    all.set_item("clients", stats.clients)?;
    all.set_item("waiting_requests", stats.waiting_requests)?;
    all.set_item("subscribers", stats.subscribers)?;
    let counters = PyDict::new(py);
    for (name, value) in &stats.counters {
        counters.set_item(name, value)?;
    }
    all.set_item("counters", counters)?;
    Ok(all)
}

/// One client of the store.
pub fn client<'py>(py: Python<'py>, client: &ClientInfo) -> PyResult<Bound<'py, PyDict>> {
    let entry = PyDict::new(py);
    entry.set_item("id", client.id)?;
    entry.set_item("name", &client.name)?;
    entry.set_item("pid", client.pid)?;
    entry.set_item("uid", client.uid)?;
    entry.set_item("gid", client.gid)?;
    entry.set_item("objects", client.objects)?;
    entry.set_item("bytes", client.bytes)?;
    entry.set_item("unsealed_objects", client.unsealed_objects)?;
    entry.set_item("waiting_requests", client.waiting_requests)?;
    entry.set_item("quota", client.quota)?;
    entry.set_item("quota_used", client.quota_used)?;
    entry.set_item("subscribed", client.subscribed)?;
    Ok(entry)
}
