"""Which works there are, in which scenes, how often, and what each is compared with.

Data only. A scene is a set of stores (one for each contender) that live as long as its works; a
work is a question to the measuring programs. The numbers of operations are for one round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KB = 1000
MB = 1000 * KB
GB = 1000 * MB
GiB = 1 << 30
MILLION = 1_000_000

OURS = "ours"
CPP = "original C++"
PYTHON = "original Python"
REDIS = "redis"
SHARED_MEMORY = "shared_memory"
RAY = "ray"
LIMIT = "limit"

#: Programs that use a store natively.
NATIVE = (OURS, CPP)
#: What stores Python values.
PYTHONS = (OURS, PYTHON, REDIS, RAY)
#: What stores bytes that have no type.
BYTE_STORES = (OURS, PYTHON, REDIS, SHARED_MEMORY, RAY)


@dataclass(frozen=True)
class Target:
    """What ours is to be at most: so many times the peer, or so many times the limit."""

    at_most: float
    of: str = CPP


@dataclass(frozen=True)
class Work:
    """A row of the table."""

    title: str
    #: What the measuring programs call it.
    verb: str
    #: Operations of one round: in a full run and in a quick one.
    count: int
    quick: int
    size: int = 0
    #: A sample is divided by this: the ids of a batch.
    per: int = 1
    #: Who is measured; none is all of the scene but "limit", which has works of its own.
    contenders: tuple[str, ...] = ()
    #: The rows of the contender "limit" of which the least is this one's limit.
    limits: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    #: The samples are times per operation of many at once: shown as a rate too.
    is_rate: bool = False


@dataclass(frozen=True)
class Scene:
    """Works that share their stores."""

    name: str
    works: tuple[Work, ...]
    contenders: tuple[str, ...] = NATIVE
    #: Memory for objects of each store.
    capacity: int = 1 * GiB
    #: Bytes that the scene needs altogether at a time; it is left out where they are not free.
    memory: int = 4 * GiB
    #: Everything runs on one core.
    pinned: bool = False
    #: The measuring programs are those in Python.
    python: bool = False
    #: Each sample has stores that are new.
    fresh: bool = False
    #: Rounds at most, for what takes long.
    rounds: int = 100
    #: The same for a quick run; 0 for no other number.
    quick_rounds: int = 0
    #: Whether all memory of the stores is touched before anything is measured.
    warm: bool = False
    #: Objects of a byte that are put before the works.
    fill: int = 0

    def measures(self, work: Work, contender: str) -> bool:
        """Whether this contender has this work to do here."""
        return contender in work.contenders if work.contenders else contender != LIMIT


def _limit(title: str, verb: str, count: int, quick: int, size: int = 0) -> Work:
    return Work(title, verb, count, quick, size, contenders=(LIMIT,))


def _trips(
    limits: tuple[str, ...],
    reads: tuple[Target, ...],
    writes: tuple[Target, ...],
    where: str = "",
) -> tuple[Work, ...]:
    """The four works that matter most; the two that write are round trips."""
    read = Work("", "", 4000, 2000, KB, limits=limits, targets=reads)
    write = replace(read, targets=writes)
    return (
        replace(read, title=f"contains{where}", verb="contains"),
        replace(write, title=f"create + write + seal 1 KB{where}", verb="create_seal"),
        replace(write, title=f"put 1 KB{where}", verb="put"),
        replace(read, title=f"get + release 1 KB{where}", verb="get"),
    )


ECHO_SLEEPING = "echo, two cores, sleeping"
ECHO_POLLING = "echo, two cores, polling"
ECHO_ONE_CORE = "echo, one core"
#: To poll is quickest where nobody else needs the cores.
ECHO = (ECHO_SLEEPING, ECHO_POLLING)
MEMCPY_10MB = "memcpy 10 MB, warm, 2 threads"
MEMCPY_512MB = "memcpy 512 MB, warm, 2 threads"
MEMCPY_FRESH = "memcpy 400 MB, fresh and populated, 2 threads"

SMALL = Scene(
    "round trips",
    (
        _limit(ECHO_SLEEPING, "echo_sleeping", 4000, 1000),
        _limit(ECHO_POLLING, "echo_polling", 4000, 2000),
        *_trips(ECHO, (Target(0.01),), (Target(0.25),)),
        Work("get of an object held already", "get_held", 4000, 2000, KB, limits=ECHO),
        Work("get of a batch of 100, per id", "get_batch", 300, 100, 100, 100, limits=ECHO),
        Work(
            "get of a batch of 1000, per id",
            "get_batch",
            100,
            30,
            1000,
            per=1000,
            limits=ECHO,
            targets=(Target(0.02),),
        ),
        Work("wake-up of a get by a seal", "wake", 300, 100, limits=(ECHO_SLEEPING,)),
        Work("put 100 KB", "put", 1000, 300, 100 * KB, limits=ECHO),
        Work("get + release 100 KB", "get", 2000, 1000, 100 * KB, limits=ECHO),
        _limit(MEMCPY_10MB, "memcpy_2", 30, 10, 10 * MB),
        Work("put 10 MB", "put", 30, 10, 10 * MB, limits=(MEMCPY_10MB,)),
        Work("get + release 10 MB", "get", 1000, 300, 10 * MB, limits=ECHO),
    ),
    contenders=(*NATIVE, LIMIT),
    capacity=512 << 20,
    warm=True,
)

ONE_CORE = Scene(
    "one core",
    (
        _limit(ECHO_ONE_CORE, "echo_sleeping", 4000, 2000),
        *_trips(
            (ECHO_ONE_CORE,),
            (Target(0.45), Target(1.7, LIMIT)),
            (Target(0.45), Target(1.7, LIMIT)),
            ", one core",
        ),
    ),
    contenders=(*NATIVE, LIMIT),
    pinned=True,
)

CROWD = Scene(
    "many clients",
    tuple(
        Work(f"get + release, {n} at once", "crowd", 20_000, 8000, n, is_rate=True)
        for n in (1, 2, 4, 16, 64)
    ),
)

READ_RANDOM = "get + release 1 KB, one of 10^5 objects"
READ_BY_ONE = "get + release 1 KB of 10^5, 1 process"
READ_BY_FOUR = "get + release 1 KB of 10^5, 4 processes"
READ_CPU = "CPU of the store while 4 processes read"

READERS = Scene(
    "readers",
    (
        Work(READ_RANDOM, "get_random", 20_000, 5000, 100_000),
        Work(READ_BY_ONE, "readers", 4_000_000, 1_000_000, 1, is_rate=True),
        Work(READ_BY_FOUR, "readers", 4_000_000, 1_000_000, 4, is_rate=True),
        Work(READ_CPU, "readers_cpu", 4_000_000, 1_000_000, 4),
    ),
    # The original has no such readers: what one of its round trips takes is above.
    contenders=(OURS,),
    rounds=5,
)

LARGE = Scene(
    "large",
    (
        _limit("memcpy 512 MB, warm, 1 thread", "memcpy_1", 4, 2, 512 * MB),
        _limit(MEMCPY_512MB, "memcpy_2", 4, 2, 512 * MB),
        _limit("memcpy 512 MB, warm, 4 threads", "memcpy_4", 4, 2, 512 * MB),
        Work(
            "put 512 MB, warm",
            "put",
            4,
            2,
            512 * MB,
            limits=(MEMCPY_512MB,),
            targets=(Target(0.6), Target(1 / 0.9, LIMIT)),
        ),
        Work("get + release 512 MB", "get", 300, 100, 512 * MB, limits=ECHO),
    ),
    contenders=(*NATIVE, LIMIT),
    capacity=3 * GiB // 2,
    memory=7 * GiB,
    warm=True,
)

FIRST_TOUCH = Scene(
    "first touch",
    (
        _limit("memcpy 400 MB, fresh, 1 thread", "fresh_1", 1, 1, 400 * MB),
        _limit("memcpy 400 MB, fresh, 2 threads", "fresh_2", 1, 1, 400 * MB),
        _limit("memcpy 400 MB, fresh and populated, 1 thread", "fresh_populated_1", 1, 1, 400 * MB),
        _limit(MEMCPY_FRESH, "fresh_populated_2", 1, 1, 400 * MB),
        Work(
            "put 400 MB, first touch",
            "put",
            1,
            1,
            400 * MB,
            limits=(MEMCPY_FRESH,),
            targets=(Target(0.25),),
        ),
    ),
    contenders=(*NATIVE, LIMIT),
    fresh=True,
)

PYTHON_VALUES = Scene(
    "Python",
    (
        Work(
            "Python put, small list",
            "put_list",
            1000,
            500,
            targets=(Target(0.2, PYTHON),),
            contenders=PYTHONS,
        ),
        Work(
            "Python get, small list",
            "get_list",
            1000,
            500,
            targets=(Target(0.06, PYTHON),),
            contenders=PYTHONS,
        ),
        Work(
            "Python get_buffers of one id, 1 KB",
            "get_raw",
            1000,
            500,
            KB,
            targets=(Target(0.05, PYTHON),),
            contenders=(OURS, PYTHON),
        ),
        Work("Python put, 1 KB of bytes", "put_bytes", 1000, 300, KB, contenders=BYTE_STORES),
        Work("Python get, 1 KB of bytes", "get_bytes", 1000, 300, KB, contenders=BYTE_STORES),
        Work("Python put, array of 8 KB", "put_array", 1000, 300, 8 * KB, contenders=BYTE_STORES),
        Work(
            "Python get, array of 8 KB",
            "get_array",
            1000,
            300,
            8 * KB,
            targets=(Target(0.15, PYTHON),),
            contenders=BYTE_STORES,
        ),
        Work("Python put, frame of 1 MB", "put_frame", 100, 30, MB, contenders=PYTHONS),
        Work("Python get, frame of 1 MB", "get_frame", 100, 30, MB, contenders=PYTHONS),
        Work("Python put, array of 10 MB", "put_array", 20, 5, 10 * MB, contenders=BYTE_STORES),
        Work("Python get, array of 10 MB", "get_array", 20, 5, 10 * MB, contenders=BYTE_STORES),
    ),
    contenders=BYTE_STORES,
    python=True,
)

PYTHON_LARGE = Scene(
    "Python, large",
    (
        Work("Python put, array of 400 MB", "put_array", 2, 1, 400 * MB),
        Work("Python get, array of 400 MB", "get_array", 2, 1, 400 * MB),
    ),
    # Without Redis: it takes seconds, and the array of 10 MB shows as much.
    contenders=(OURS, PYTHON, SHARED_MEMORY, RAY),
    memory=8 * GiB,
    python=True,
    rounds=3,
    quick_rounds=1,
)

#: What is measured in other ways than by asking for times; the code is in `special`.
IDLE = "CPU of a store with 1,000 idle clients, 10 s"
HEAP = "server heap per object at 10^6"
TURNS = "longest turn of the loop during"
FILL_TURN = f"{TURNS} puts of 10^6, 100 together"

#: Scenes in which more is measured than their works.
HEAP_SCENE = "a million objects"
TURN_SCENE = "turns"

#: Two rows, and how many times as long the first one may take: rates of at least 0.8 and 1.8.
RATES = (
    ("put 1 B, 10^6 objects there", "put 1 B, 10^3 objects there", 1 / 0.8),
    (READ_BY_FOUR, READ_BY_ONE, 1 / 1.8),
)

THOUSAND = Scene(
    "a thousand objects",
    (Work("put 1 B, 10^3 objects there", "put", 3000, 1000, 1),),
    fill=1000,
)

_PINGS = tuple(
    Work(f"ping during {what}", f"ping_{verb}", 1, 1, size)
    for what, verb, size in (
        ("a put of 1 GB", "put", GB),
        ("a list of 10^6", "list", MILLION),
        ("a subscription to 10^6", "subscribe", MILLION),
        ("an eviction of 10^5", "evict", MILLION // 10),
    )
)

MILLION_OBJECTS = Scene(
    HEAP_SCENE,
    (
        Work("put 1 B, 10^6 objects there", "put", 3000, 1000, 1),
        Work("list of 10^6 objects", "list", 1, 1),
        Work("subscribe with 10^6 objects", "subscribe", 1, 1, MILLION),
        *_PINGS,
    ),
    capacity=2 * GiB,
    memory=8 * GiB,
    fill=MILLION,
    rounds=3,
    quick_rounds=1,
)

TURN_SCENES = tuple(
    Scene(
        TURN_SCENE,
        (replace(work, title=work.title.replace("ping during", TURNS)),),
        contenders=(OURS,),
        capacity=2 * GiB,
        fill=0 if work.verb == "ping_put" else MILLION,
        rounds=1,
    )
    for work in _PINGS
)

SCENES = (
    SMALL,
    ONE_CORE,
    CROWD,
    READERS,
    LARGE,
    FIRST_TOUCH,
    PYTHON_VALUES,
    PYTHON_LARGE,
    THOUSAND,
    MILLION_OBJECTS,
    *TURN_SCENES,
)


def smoke(scenes: tuple[Scene, ...]) -> tuple[Scene, ...]:
    """The same with next to no work: whether everything can still be asked."""

    def small(size: int) -> int:
        return min(size, MB)

    def few(work: Work) -> Work:
        is_count = work.verb in ("subscribe", "ping_subscribe", "ping_evict", "get_random")
        size = min(work.size, 1000) if is_count else small(work.size)
        return replace(work, count=min(work.count, 2), quick=min(work.quick, 2), size=size)

    return tuple(
        replace(
            scene,
            works=tuple(few(work) for work in scene.works),
            contenders=tuple(c for c in scene.contenders if c in (OURS, LIMIT)),
            fill=min(scene.fill, 1000),
            capacity=64 << 20,
            memory=1 << 30,
        )
        for scene in scenes
    )
