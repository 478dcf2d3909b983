"""A shared-memory store of immutable objects for one machine, as `pyarrow.plasma` was.

Start a store, `plasma_store -m 1GB -s /tmp/plasma`, and in any number of processes:

    import plasma

    client = plasma.connect("/tmp/plasma")
    object_id = client.put({"weights": array})
    client.get(object_id)["weights"]  # lies in shared memory: no copy, read-only
"""

from plasma import aio
from plasma._alias import install_as_pyarrow_plasma
from plasma._core import ObjectID, __version__
from plasma.client import (
    ObjectNotAvailable,
    PlasmaBuffer,
    PlasmaClient,
    connect,
)
from plasma.errors import (
    InvalidObjectError,
    PlasmaObjectExists,
    PlasmaObjectNotFound,
    PlasmaStoreFull,
)
from plasma.notifications import Notification
from plasma.serialization import SerializationContext
from plasma.server import (
    DEFAULT_PLASMA_STORE_MEMORY,
    plasma_store_executable,
    start_plasma_store,
)
from plasma.tensorflow import (
    TF_PLASMA_OP_PATH,
    build_plasma_tensorflow_op,
    load_plasma_tensorflow_op,
    tf_plasma_op,
)

__all__ = [
    "DEFAULT_PLASMA_STORE_MEMORY",
    "InvalidObjectError",
    "Notification",
    "ObjectID",
    "ObjectNotAvailable",
    "PlasmaBuffer",
    "PlasmaClient",
    "PlasmaObjectExists",
    "PlasmaObjectNotFound",
    "PlasmaStoreFull",
    "SerializationContext",
    "TF_PLASMA_OP_PATH",
    "__version__",
    "aio",
    "build_plasma_tensorflow_op",
    "connect",
    "install_as_pyarrow_plasma",
    "load_plasma_tensorflow_op",
    "plasma_store_executable",
    "start_plasma_store",
    "tf_plasma_op",
]
