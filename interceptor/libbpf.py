"""A thin binding to libbpf 1.x by ctypes: what we use of it, no more.

Every function here raises `KernelError` with libbpf's own words. Descriptors are returned
as plain ints that the caller owns and closes. Nothing here blocks.

Source: libbpf.h and bpf.h of libbpf 1.1 (Debian 12); soname 0 has other error conventions
and is refused.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import TypeVar

from interceptor.errors import InterceptorError, KernelError

SONAME = "libbpf.so.1"


class AttachType(IntEnum):
    """enum bpf_attach_type of <linux/bpf.h>."""

    SOCK_OPS = 3
    CONNECT4 = 10
    CONNECT6 = 11
    GETSOCKOPT = 21
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    SK_LOOKUP = 36


BPF_ANY = 0
BPF_NOEXIST = 1
BPF_F_QUERY_EFFECTIVE = 1

_PrintFn = c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, c.c_void_p)
_SampleFn = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t)

_LIBBPF_WARN = 0
_Info = TypeVar("_Info", bound=c.Structure)
_log = threading.local()
# C calls these: they must live as long as the library.
_callbacks: list[object] = []


class _LinkCreateOpts(c.Structure):
    _fields_ = (
        ("sz", c.c_size_t),
        ("flags", c.c_uint32),
        ("iter_info", c.c_void_p),
        ("iter_info_len", c.c_uint32),
        ("target_btf_id", c.c_uint32),
        ("extra", c.c_uint64 * 8),
    )


class _LinkUpdateOpts(c.Structure):
    _fields_ = (("sz", c.c_size_t), ("flags", c.c_uint32), ("old_prog_fd", c.c_uint32))


class _ProgLoadOpts(c.Structure):
    _fields_ = (
        ("sz", c.c_size_t),
        ("attempts", c.c_int),
        ("expected_attach_type", c.c_int),
        ("rest", c.c_uint64 * 16),
    )


class _MapCreateOpts(c.Structure):
    _fields_ = (
        ("sz", c.c_size_t),
        ("btf", c.c_uint32 * 4),
        ("inner_map_fd", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("rest", c.c_uint64 * 4),
    )


class ProgInfo(c.Structure):
    """The first fields of struct bpf_prog_info."""

    _fields_ = (
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("tag", c.c_uint8 * 8),
        ("jited_prog_len", c.c_uint32),
        ("xlated_prog_len", c.c_uint32),
        ("jited_prog_insns", c.c_uint64),
        ("xlated_prog_insns", c.c_uint64),
        ("load_time", c.c_uint64),
        ("created_by_uid", c.c_uint32),
        ("nr_map_ids", c.c_uint32),
        ("map_ids", c.c_uint64),
        ("name", c.c_char * 16),
    )


class MapInfo(c.Structure):
    """The first fields of struct bpf_map_info."""

    _fields_ = (
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("name", c.c_char * 16),
    )


class LinkInfo(c.Structure):
    """The first fields of struct bpf_link_info, for cgroup and netns links."""

    _fields_ = (
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("prog_id", c.c_uint32),
        ("pad", c.c_uint32),
        ("union", c.c_uint8 * 64),
    )

    @property
    def cgroup_id(self) -> int:
        """Of a cgroup link; 0 when its cgroup has been removed."""
        return int.from_bytes(bytes(self.union[:8]), "little")

    @property
    def netns_ino(self) -> int:
        """Of a netns link; 0 when its namespace has gone."""
        return int.from_bytes(bytes(self.union[:4]), "little")


@cache
def library() -> c.CDLL:
    """Load libbpf once and silence its stderr; its messages travel in our errors instead."""
    try:
        lib = c.CDLL(SONAME, use_errno=True)
        libc = c.CDLL(None)
    except OSError as e:
        raise InterceptorError(
            f"load {SONAME}: {e}; install libbpf 1.x (Debian: apt-get install libbpf1)"
        ) from e
    vsnprintf = libc.vsnprintf
    vsnprintf.argtypes = (c.c_char_p, c.c_size_t, c.c_char_p, c.c_void_p)

    def capture(level: int, fmt: bytes, args: int) -> int:
        lines = getattr(_log, "lines", None)
        if lines is not None and level == _LIBBPF_WARN:
            buffer = c.create_string_buffer(16384)
            vsnprintf(buffer, len(buffer), fmt, args)
            lines.append(buffer.value.decode(errors="replace"))
        return 0

    callback = _PrintFn(capture)
    lib.libbpf_set_print.argtypes = (_PrintFn,)
    lib.libbpf_set_print(callback)
    _callbacks.append(callback)
    _declare(lib)
    return lib


_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "libbpf_version_string": (c.c_char_p, ()),
    "libbpf_num_possible_cpus": (c.c_int, ()),
    "bpf_object__open_file": (c.c_void_p, (c.c_char_p, c.c_void_p)),
    "bpf_object__load": (c.c_int, (c.c_void_p,)),
    "bpf_object__close": (None, (c.c_void_p,)),
    "bpf_object__next_map": (c.c_void_p, (c.c_void_p, c.c_void_p)),
    "bpf_object__next_program": (c.c_void_p, (c.c_void_p, c.c_void_p)),
    "bpf_map__name": (c.c_char_p, (c.c_void_p,)),
    "bpf_map__fd": (c.c_int, (c.c_void_p,)),
    "bpf_map__type": (c.c_int, (c.c_void_p,)),
    "bpf_map__key_size": (c.c_uint32, (c.c_void_p,)),
    "bpf_map__value_size": (c.c_uint32, (c.c_void_p,)),
    "bpf_map__max_entries": (c.c_uint32, (c.c_void_p,)),
    "bpf_map__reuse_fd": (c.c_int, (c.c_void_p, c.c_int)),
    "bpf_program__name": (c.c_char_p, (c.c_void_p,)),
    "bpf_program__fd": (c.c_int, (c.c_void_p,)),
    "bpf_program__set_autoload": (c.c_int, (c.c_void_p, c.c_bool)),
    "bpf_obj_pin": (c.c_int, (c.c_int, c.c_char_p)),
    "bpf_obj_get": (c.c_int, (c.c_char_p,)),
    "bpf_obj_get_info_by_fd": (c.c_int, (c.c_int, c.c_void_p, c.POINTER(c.c_uint32))),
    "bpf_prog_load": (
        c.c_int,
        (c.c_int, c.c_char_p, c.c_char_p, c.c_char_p, c.c_size_t, c.POINTER(_ProgLoadOpts)),
    ),
    "bpf_map_create": (
        c.c_int,
        (c.c_int, c.c_char_p, c.c_uint32, c.c_uint32, c.c_uint32, c.c_void_p),
    ),
    "bpf_prog_get_fd_by_id": (c.c_int, (c.c_uint32,)),
    "bpf_link_create": (c.c_int, (c.c_int, c.c_int, c.c_int, c.POINTER(_LinkCreateOpts))),
    "bpf_link_update": (c.c_int, (c.c_int, c.c_int, c.POINTER(_LinkUpdateOpts))),
    "bpf_link_detach": (c.c_int, (c.c_int,)),
    "bpf_map_update_elem": (c.c_int, (c.c_int, c.c_void_p, c.c_void_p, c.c_uint64)),
    "bpf_map_lookup_elem": (c.c_int, (c.c_int, c.c_void_p, c.c_void_p)),
    "bpf_map_delete_elem": (c.c_int, (c.c_int, c.c_void_p)),
    "bpf_map_get_next_key": (c.c_int, (c.c_int, c.c_void_p, c.c_void_p)),
    "bpf_prog_query": (
        c.c_int,
        (
            c.c_int,
            c.c_int,
            c.c_uint32,
            c.POINTER(c.c_uint32),
            c.POINTER(c.c_uint32),
            c.POINTER(c.c_uint32),
        ),
    ),
    "ring_buffer__new": (c.c_void_p, (c.c_int, _SampleFn, c.c_void_p, c.c_void_p)),
    "ring_buffer__consume": (c.c_int, (c.c_void_p,)),
    "ring_buffer__epoll_fd": (c.c_int, (c.c_void_p,)),
    "ring_buffer__free": (None, (c.c_void_p,)),
}


def _declare(lib: c.CDLL) -> None:
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments


def version() -> str:
    """libbpf's own version, for example `v1.1`."""
    return str(library().libbpf_version_string().decode())


def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key."""
    return _checked("count possible CPUs", library().libbpf_num_possible_cpus)


def _checked(what: str, function: Callable[..., int], *arguments: object, hint: str = "") -> int:
    """Call a libbpf function that returns a negative error number."""
    lines: list[str] = []
    _log.lines = lines
    try:
        result = function(*arguments)
    finally:
        _log.lines = None
    if result < 0:
        raise KernelError(what, -result, log="".join(lines), hint=hint)
    return int(result)


class Object:
    """An opened BPF object file; `close` frees it and every descriptor that it still owns."""

    def __init__(self, path: Path) -> None:
        self._lib = library()
        self._path = path
        lines: list[str] = []
        _log.lines = lines
        c.set_errno(0)
        try:
            self._handle = self._lib.bpf_object__open_file(os.fsencode(path), None)
        finally:
            _log.lines = None
        if not self._handle:
            hint = "" if path.exists() else "build it with `make build`"
            raise KernelError(
                f"open BPF object {path}",
                c.get_errno() or errno.EINVAL,
                log="".join(lines),
                hint=hint,
            )

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = None

    def _maps(self) -> Iterator[tuple[str, int]]:
        handle = self._lib.bpf_object__next_map(self._handle, None)
        while handle:
            yield self._lib.bpf_map__name(handle).decode(), handle
            handle = self._lib.bpf_object__next_map(self._handle, handle)

    def _programs(self) -> Iterator[tuple[str, int]]:
        handle = self._lib.bpf_object__next_program(self._handle, None)
        while handle:
            yield self._lib.bpf_program__name(handle).decode(), handle
            handle = self._lib.bpf_object__next_program(self._handle, handle)

    def map_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Name to (type, key size, value size, max entries), as compiled."""
        lib = self._lib
        return {
            name: (
                lib.bpf_map__type(handle),
                lib.bpf_map__key_size(handle),
                lib.bpf_map__value_size(handle),
                lib.bpf_map__max_entries(handle),
            )
            for name, handle in self._maps()
        }

    def reuse_map(self, name: str, fd: int) -> None:
        """Make the object use an existing map; the descriptor stays the caller's."""
        handle = dict(self._maps())[name]
        _checked(f"reuse map {name}", self._lib.bpf_map__reuse_fd, handle, fd)

    def skip_program(self, name: str) -> None:
        """Leave a program out of the load, for a kernel that lacks its hook."""
        handle = dict(self._programs())[name]
        _checked(f"skip program {name}", self._lib.bpf_program__set_autoload, handle, False)

    def load(self) -> None:
        """Create the maps and verify the programs."""
        _checked(f"load {self._path.name}", self._lib.bpf_object__load, self._handle)

    def map_fds(self) -> dict[str, int]:
        """Name to descriptor; owned by this object."""
        return {name: self._lib.bpf_map__fd(handle) for name, handle in self._maps()}

    def program_fds(self) -> dict[str, int]:
        """Name to descriptor of the programs that were loaded; owned by this object."""
        fds = {name: self._lib.bpf_program__fd(handle) for name, handle in self._programs()}
        return {name: fd for name, fd in fds.items() if fd >= 0}


def pin(fd: int, path: Path) -> None:
    """Pin an object in bpffs, readable by root alone."""
    _checked(f"pin {path}", library().bpf_obj_pin, fd, os.fsencode(path))
    path.chmod(0o600)


def open_pin(path: Path) -> int:
    """A new descriptor of a pinned object."""
    return _checked(f"open pin {path}", library().bpf_obj_get, os.fsencode(path))


def program_load(prog_type: int, attach: AttachType, instructions: bytes) -> int:
    """Verify a few raw instructions (8 bytes each); for probes."""
    opts = _ProgLoadOpts(sz=c.sizeof(_ProgLoadOpts), expected_attach_type=int(attach))
    return _checked(
        f"load a {attach.name.lower()} program",
        library().bpf_prog_load,
        prog_type,
        b"moa_probe",
        b"GPL",
        instructions,
        len(instructions) // 8,
        c.byref(opts),
    )


def map_create(
    map_type: int, key_size: int, value_size: int, max_entries: int, flags: int = 0
) -> int:
    """Create a plain map; for probes."""
    opts = _MapCreateOpts(sz=c.sizeof(_MapCreateOpts), map_flags=flags)
    return _checked(
        f"create a map of type {map_type}",
        library().bpf_map_create,
        map_type,
        b"moa_probe",
        key_size,
        value_size,
        max_entries,
        c.byref(opts),
    )


def link_create(prog_fd: int, target_fd: int, attach: AttachType, target: str) -> int:
    """Attach through a bpf_link, which implies multi-attach on cgroups. Kernel 5.7, 5.9 netns."""
    opts = _LinkCreateOpts(sz=c.sizeof(_LinkCreateOpts))
    return _checked(
        f"attach {attach.name.lower()} to {target}",
        library().bpf_link_create,
        prog_fd,
        target_fd,
        int(attach),
        c.byref(opts),
    )


def link_update(link_fd: int, prog_fd: int, target: str) -> None:
    """Replace a link's program in one step: no connection sees a moment without one."""
    opts = _LinkUpdateOpts(sz=c.sizeof(_LinkUpdateOpts))
    _checked(f"update link of {target}", library().bpf_link_update, link_fd, prog_fd, c.byref(opts))


def link_detach(link_fd: int, target: str) -> None:
    """Detach a link whoever else holds it open. Kernel 5.9."""
    _checked(f"detach link of {target}", library().bpf_link_detach, link_fd)


def _info(fd: int, kind: type[_Info], what: str) -> _Info:
    info = kind()
    size = c.c_uint32(c.sizeof(info))
    _checked(what, library().bpf_obj_get_info_by_fd, fd, c.byref(info), c.byref(size))
    return info


def program_info(fd: int) -> ProgInfo:
    """Id, tag (a hash of the instructions) and name of a program."""
    return _info(fd, ProgInfo, "read program info")


def map_info(fd: int) -> MapInfo:
    """Shape of a map."""
    return _info(fd, MapInfo, "read map info")


def link_info(fd: int) -> LinkInfo:
    """What a link joins."""
    return _info(fd, LinkInfo, "read link info")


def program_name(prog_id: int) -> str:
    """The name of a program that anybody loaded."""
    fd = _checked(f"open program {prog_id}", library().bpf_prog_get_fd_by_id, prog_id)
    try:
        return bytes(program_info(fd).name).decode(errors="replace")
    finally:
        os.close(fd)


def attached_programs(target_fd: int, attach: AttachType) -> list[int]:
    """Ids of the programs attached to exactly this cgroup or network namespace."""
    ids = (c.c_uint32 * 64)()
    count = c.c_uint32(64)
    flags = c.c_uint32()
    _checked(
        f"query {attach.name.lower()}",
        library().bpf_prog_query,
        target_fd,
        int(attach),
        0,
        c.byref(flags),
        ids,
        c.byref(count),
    )
    return list(ids[: count.value])


def map_update(fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    """Write one element. For sockmaps and socket storage see `interceptor.maps`."""
    _checked("write map element", library().bpf_map_update_elem, fd, key, value, flags)


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Read one element; None when it is absent."""
    value = c.create_string_buffer(value_size)
    try:
        _checked("read map element", library().bpf_map_lookup_elem, fd, key, value)
    except KernelError as e:
        if e.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one element; False when it was absent."""
    try:
        _checked("delete map element", library().bpf_map_delete_elem, fd, key)
    except KernelError as e:
        if e.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise
    return True


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Every key; elements may come and go meanwhile."""
    following = c.create_string_buffer(key_size)
    current: bytes | None = None
    while True:
        try:
            _checked("walk map", library().bpf_map_get_next_key, fd, current, following)
        except KernelError as e:
            if e.errno == errno.ENOENT:
                return
            raise
        current = following.raw
        yield current


class RingBuffer:
    """Reads a BPF ring buffer. `fileno` is ready for reading when there are records."""

    def __init__(self, map_fd: int, on_record: Callable[[bytes], None]) -> None:
        self._lib = library()

        def sample(_ctx: int, data: int, size: int) -> int:
            on_record(c.string_at(data, size))
            return 0

        self._callback = _SampleFn(sample)
        self._handle = self._lib.ring_buffer__new(map_fd, self._callback, None, None)
        if not self._handle:
            raise KernelError("open ring buffer", c.get_errno() or errno.EINVAL)

    def fileno(self) -> int:
        return int(self._lib.ring_buffer__epoll_fd(self._handle))

    def consume(self) -> int:
        """Hand every record that is there to the callback; returns how many."""
        return _checked("read ring buffer", self._lib.ring_buffer__consume, self._handle)

    def close(self) -> None:
        if self._handle:
            self._lib.ring_buffer__free(self._handle)
            self._handle = None
