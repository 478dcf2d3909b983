"""A program with three mistakes, which `mypy --strict` has to find. It is never run."""

import plasma

client = plasma.connect("/tmp/plasma")
client.create(b"not an id", 10)  # mistake: bytes are no ObjectID
client.put(1, timeout=5)  # mistake: it is called timeout_ms
object_id: str = plasma.ObjectID.from_random().binary()  # mistake: these are bytes
