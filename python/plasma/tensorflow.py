"""The original's TensorFlow operator, which this package does not have.

The names exist, so that programs that only mention them go on; to build or load the operator is an
error that says what to do instead.
"""

import os
from typing import NoReturn

__all__ = [
    "TF_PLASMA_OP_PATH",
    "build_plasma_tensorflow_op",
    "load_plasma_tensorflow_op",
    "tf_plasma_op",
]

TF_PLASMA_OP_PATH: str = os.path.join(os.path.dirname(__file__), "tensorflow", "plasma_op.so")
"""Where the original's operator would be. There is no such file."""

tf_plasma_op: None = None
"""The loaded operator: never."""


def build_plasma_tensorflow_op() -> NoReturn:
    """Raises NotImplementedError: there is no operator to build."""
    raise _no_operator()


def load_plasma_tensorflow_op() -> NoReturn:
    """Raises NotImplementedError: there is no operator to load."""
    raise _no_operator()


def _no_operator() -> NotImplementedError:
    return NotImplementedError(
        "there is no TensorFlow operator for this store; read the object with client.get or "
        "client.get_buffers and give TensorFlow the array"
    )
